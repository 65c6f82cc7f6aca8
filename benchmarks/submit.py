"""Submit 1,000 runs to a real Slurm with furnace, with submitit's map_array, and with a shell loop.

    python benchmarks/submit.py     ten minutes; needs what slurm/devcluster needs

Goals: one sbatch for the array. At most 1.3 x the time of map_array, which writes no specs. At
least 50 x faster than the loop at 50 and 200 ms per call. One squeue and at most one sacct for the
status of 1,000 runs. No missing or duplicate run if a submission is killed at any point.

The slowed sbatch waits before it reads its input and starts the real one. So all three ways wait
for the whole time in each call. `sbatch --test-only` is slowed in the same way, but not counted: it
submits nothing, and only furnace calls it.
"""

import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
from commands import big_grid  # noqa: E402
from crash import POINTS  # noqa: E402
from slurm_cluster import Cluster, start_cluster, wait_until  # noqa: E402
from slurm_study import Study, shim  # noqa: E402

REPEATS = 3
LOOP = 100  # calls of the loop instead of 1,000: all take the same time
READ_ONE_BY_ONE = 50  # states read from submitit instead of 1,000
TEST_ONLY = 'case " $* " in *" --test-only "*) ;; *) echo "$0" >> "{calls}" ;; esac'
COUNTING = TEST_ONLY + '; sleep {latency_s}; exec $REAL "$@"'
CLOSED = {"partition": "closed", "max_submit_jobs": None}

MAP_ARRAY = """
import os, signal, sys, submitit
folder, number, die_after = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
executor = submitit.AutoExecutor(folder, cluster="slurm")
executor.update_parameters(
    slurm_partition="closed", timeout_min=60, slurm_array_parallelism=32, slurm_wckey=""
)
if die_after:
    from submitit.core.utils import JobPaths
    move, moved = JobPaths.move_temporary_file, []
    def counted(self, path, name, **more):
        if name == "submitted_pickle" and len(moved) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        moved.append(1) if name == "submitted_pickle" else None
        return move(self, path, name, **more)
    JobPaths.move_temporary_file = counted
jobs = executor.map_array(print, range(number))
if len(sys.argv) > 4:
    os.environ["PATH"] = sys.argv[4]
    for job in jobs[:50]:
        submitit.SlurmJob(folder, job.job_id).state
"""


def main() -> None:
    """Measure everything and write the rows."""
    record.begin()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fb") as folder:
        cluster = start_cluster(Path(folder) / "c")
        try:
            study = Study(cluster, Path(folder), profile=CLOSED)
            study.variants = ("ok", "ok2")
            big_grid(study.place)
            for latency_s in (0.05, 0.2):
                rows += submission(study, latency_s)
            rows.append(status(study))
            rows.append(crash_points(study))
            rows.append(crash_of_map_array(study))
        finally:
            cluster.down()
    record.write("submit", rows)


def submission(study: Study, latency_s: float) -> list[dict[str, Any]]:
    """Time the three ways in turn, so that noise affects all alike."""
    times: dict[str, list[float]] = {"furnace": [], "map_array": [], "loop": []}
    calls: dict[str, int] = {}
    for repeat in range(REPEATS):
        path = counted(study, "sbatch", latency_s)
        ways = {
            "furnace": [*submit(study), "--runs-root", f"runs-{latency_s}-{repeat}"],
            "map_array": [
                sys.executable,
                "-c",
                MAP_ARRAY,
                f"map-{latency_s}-{repeat}",
                "1000",
                "0",
            ],
        }
        if repeat == 0:
            call = "sbatch --partition=closed --wrap true"
            ways["loop"] = ["bash", "-c", f"for i in $(seq {LOOP}); do {call}; done"]
        for name, command in ways.items():
            (study.place / "calls").unlink(missing_ok=True)
            started_s = time.perf_counter()
            done = study.cluster.run(*command, cwd=study.place, timeout_s=600, PATH=path)
            times[name].append(time.perf_counter() - started_s)
            assert done.returncode == 0, done.stderr
            calls[name] = len((study.place / "calls").read_text().splitlines())
            empty(study.cluster)
    ours, theirs = statistics.median(times["furnace"]), statistics.median(times["map_array"])
    loop = times["loop"][0] * 1000 / LOOP
    return [
        {
            "what": f"1,000 runs submitted, sbatch taking {latency_s * 1000:.0f} ms more",
            "furnace_s": round(ours, 2),
            "map_array_s": round(theirs, 2),
            "loop_s": round(loop, 1),
            "loop_scaled_from_calls": LOOP,
            "furnace_sbatch_calls": calls["furnace"],
            "map_array_sbatch_calls": calls["map_array"],
            "furnace_over_map_array": round(ours / theirs, 2),
            "goal_over_map_array": 1.3,
            "loop_over_furnace": round(loop / ours, 1),
            "goal_loop_over_furnace": 50,
            "reached": ours <= 1.3 * theirs and loop >= 50 * ours,
        }
    ]


def status(study: Study) -> dict[str, Any]:
    """Slurm's commands that one status of 1,000 waiting runs takes."""
    done = study.cluster.run(
        *submit(study), "--runs-root", "runs-status", cwd=study.place, timeout_s=120
    )
    assert done.returncode == 0, done.stderr
    calls = study.place / "calls"
    calls.unlink(missing_ok=True)
    path = counted(study, "sacct", 0)
    path = counted(study, "squeue", 0)
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.status",
        "--grid",
        "ablation",
        "--runs-root",
        "runs-status",
    ]
    started_s = time.perf_counter()
    shown = study.cluster.run(*command, cwd=study.place, PATH=path)
    took_s = time.perf_counter() - started_s
    assert "1,000 runs: 1,000 queued" in shown.stdout, shown.stdout[-300:] + shown.stderr
    ours = Counter(Path(line).name for line in calls.read_text().splitlines())
    empty(study.cluster)
    calls.unlink()
    map_array = [sys.executable, "-c", MAP_ARRAY, "map-status", "1000", "0", path]
    study.cluster.run(*map_array, cwd=study.place, timeout_s=600)
    theirs = len(calls.read_text().splitlines())
    empty(study.cluster)
    return {
        "what": "status of 1,000 runs",
        "furnace_calls": dict(ours),
        "furnace_s": round(took_s, 2),
        "submitit_sacct_calls": theirs,
        "submitit_states_read_one_by_one": READ_ONE_BY_ONE,
        "goal": "1 squeue and at most 1 sacct",
        "reached": ours["squeue"] == 1 and ours["sacct"] <= 1,
    }


def crash_points(study: Study) -> dict[str, Any]:
    """Kill a submission at every point and repeat it. Count runs without or with two elements."""
    study.write(CLOSED)
    missing = doubled = 0
    for point in POINTS:
        study.submit(script=f"crash.py {point}")
        study.submit()
        elements = study.elements()
        missing += sum(elements[row] == 0 for row in range(2))
        doubled += sum(number > 1 for number in elements.values())
        empty(study.cluster)
        study.folder.rename(study.folder.with_name(f"after-{point}"))
    return {
        "what": f"furnace killed at each of {len(POINTS)} points and given again",
        "missing": missing,
        "doubled": doubled,
        "reached": missing + doubled == 0,
    }


def crash_of_map_array(study: Study) -> dict[str, Any]:
    """Kill map_array of 10 after sbatch and three of its renames, and repeat it."""
    for die_after in (3, 0):
        study.cluster.run(
            sys.executable, "-c", MAP_ARRAY, "map-crash", "10", str(die_after), cwd=study.place
        )
    elements = [line for line in study.queue() if line[1] != "N/A"]
    ready = len(list((study.place / "map-crash").glob("*_submitted.pkl")))
    empty(study.cluster)
    return {
        "what": "submitit's map_array of 10, killed between two of its renames and given again",
        "doomed": len(elements) - ready,
        "doubled": ready - 10,
    }


def submit(study: Study) -> list[str]:
    """The command under test."""
    return [
        sys.executable,
        "-m",
        "furnace_hpc.submit",
        "--grid",
        "big.yaml",
        "--cluster",
        "dev",
        "--yes",
    ]


def counted(study: Study, name: str, latency_s: float) -> str:
    """A PATH on which this command takes longer and writes a line per call."""
    return shim(
        study.place,
        name,
        COUNTING.format(calls=study.place / "calls", latency_s=latency_s),
        also_test_only=True,
    )


def empty(cluster: Cluster) -> None:
    """Whether no job is left."""
    cluster.run("scancel", "--user", "root")
    wait_until(
        lambda: not cluster.run("squeue", "--noheader").stdout.strip(), 120, "an empty queue"
    )


if __name__ == "__main__":
    main()
