"""Node-hours of 40 small runs on 2 nodes of 4 GPUs: four runs per node against one run per node.

    python benchmarks/runs_per_node.py            eight minutes; needs what slurm/devcluster needs
    python benchmarks/runs_per_node.py --runs 16  a shorter form

The GPUs are simulated, and the ranks are stand-ins that sleep 6 to 18 seconds. Both ways ask for
whole nodes, as sites with that policy give them. Slurm's accounting has the time of every job.
Goal: at most 0.3 x the node-hours. No run missing, none started twice.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
from slurm_cluster import Cluster, start_cluster, wait_until  # noqa: E402
from slurm_study import Study  # noqa: E402

LIMIT_S = 1800
NODE = {
    "gpus_per_node": 4,
    "gpu_flag": "gpus_per_node",
    "mem_gb": 8,
    "follow_up": False,
    "setup": ["export DS_ACCELERATOR=cpu"],
}
# The stand-in for Python. A rank first sleeps as long as its seed says.
SLEEP = (
    '[ -n "${SLURM_PROCID:-}" ] && case "$*" in *runner.py*) ;; *launch.rank_main*|*core._submit*) '
    'seed="${FURNACE_RUN_DIR##*-s}"; sleep "$(( 6 + ${seed%%-*} * 5 % 13 ))" ;; esac'
)


def seconds(seed: int) -> int:
    """Return how long the run of a seed sleeps."""
    return 6 + seed * 5 % 13


def main() -> None:
    """Measure both ways and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    num_runs = parser.parse_args().runs
    record.begin()
    with tempfile.TemporaryDirectory(prefix="furnace-bench-") as folder:
        cluster = start_cluster(Path(folder) / "cluster", "--nodes", "2")
        try:
            rows = [measure(cluster, Path(folder), num_runs, number) for number in (1, 4)]
        finally:
            cluster.down()
    ratio = rows[1]["node_s"] / rows[0]["node_s"]
    lengths = [seconds(seed) for seed in range(num_runs)]
    fixed = sum(max(lengths[start : start + 4]) for start in range(0, num_runs, 4))
    summary = {
        "what": "four runs per node against one",
        "node_hours_ratio": round(ratio, 3),
        "goal": 0.3,
        "ratio_if_groups_were_fixed": round(fixed / sum(lengths), 3),  # computed, without starts
        "bound": 0.25,
    }
    record.write("runs_per_node", [*rows, summary])


def measure(cluster: Cluster, folder: Path, num_runs: int, number: int) -> dict[str, Any]:
    """Train all runs with so many runs per node, and sum the time of their jobs."""
    place = folder / f"study-{number}"
    place.mkdir()
    profile = NODE | {"runs_per_node": number}
    study = Study(cluster, place, variants=("ok",), seeds=num_runs, profile=profile)
    python = place / "python"
    python.write_text(python.read_text().replace("\n", f"\n{SLEEP}\n", 1))
    start = time.monotonic()
    study.submitted()
    wait_until(lambda: len(list(study.folder.glob("ok-*/result.json"))) == num_runs, LIMIT_S, "all")
    wall_s = time.monotonic() - start
    wait_until(lambda: not study.queue(), 120, "an empty queue")
    times = elapsed(cluster)
    for job in list(times):
        if job in SEEN:
            del times[job]
    SEEN.update(times)
    starts = study.starts()
    return {
        "what": f"{num_runs} runs of one GPU, {number} per node",
        "runs_per_node": number,
        "node_s": sum(times.values()),
        "jobs": len(times),
        "jobs_that_trained": sum(1 for elapsed_s in times.values() if elapsed_s > 4),
        "wall_s": round(wall_s, 1),
        "run_s": sum(seconds(seed) for seed in range(num_runs)),
        "missing": num_runs - len(starts),
        "doubled": sum(count - 1 for count in starts.values()),
    }


SEEN: dict[str, int] = {}


def elapsed(cluster: Cluster) -> dict[str, int]:
    """Seconds of every job in the accounting. All jobs have one node."""
    command = ("sacct", "--allocations", "--noheader", "--parsable2")
    done = cluster.run(*command, "--format=JobID,ElapsedRaw", "--starttime=now-2hours")
    assert done.returncode == 0, done.stderr
    lines = (line.split("|") for line in done.stdout.splitlines())
    return {job: int(elapsed_s) for job, elapsed_s in lines}


if __name__ == "__main__":
    main()
