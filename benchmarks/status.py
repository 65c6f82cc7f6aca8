"""Measure the cost of `furnace status` for 1,000 runs on a real Slurm, once and with --watch.

    python benchmarks/status.py     two minutes; needs what slurm/devcluster needs

The 1,000 runs are one array: 200 wait, 200 train (their metrics grow), 200 were preempted, and 400
are done. Goals: 0.7 s, one squeue and at most one sacct. With --watch: at most one squeue in
ten seconds and 5 % of a core.
"""

import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import psutil  # noqa: E402
import record  # noqa: E402
from commands import big_grid  # noqa: E402
from slurm_cluster import start_cluster  # noqa: E402
from slurm_study import Study  # noqa: E402
from submit import CLOSED, counted, empty, submit  # noqa: E402

from furnace_hpc.host import lifecycle  # noqa: E402
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_json  # noqa: E402
from furnace_hpc.runs.journal import submissions  # noqa: E402
from furnace_hpc.runs.records.metrics import MetricsFile  # noqa: E402

REPEATS = 9
WATCHED_S = 40.0
STATUS = [sys.executable, "-m", "furnace_hpc.status", "--grid", "ablation"]
# preempted runs wait for the follow-up job
COUNTS = "1,000 runs: 400 queued, 200 running, 400 done"


def main() -> None:
    """Make the runs, measure both, and write the rows."""
    record.begin()
    with tempfile.TemporaryDirectory(prefix="fb") as folder:
        cluster = start_cluster(Path(folder) / "c")
        try:
            study = Study(cluster, Path(folder), profile=CLOSED)
            big_grid(study.place)
            done = cluster.run(*submit(study), cwd=study.place, timeout_s=300)
            assert done.returncode == 0, done.stderr
            grid = GridFolder(study.place / "runs" / "ablation")
            running = make_runs(grid)
            counted(study, "sacct", 0)
            path = counted(study, "squeue", 0)
            rows = [once(study, grid, path), watched(study, grid, path, running)]
        finally:
            empty(cluster)
            cluster.down()
    record.write("status", rows)


def make_runs(grid: GridFolder) -> list[RunFolder]:
    """Write the files of 400 done, 200 preempted and 200 training runs.

    Return the training ones.
    """
    [submission] = submissions(grid)
    runs = [grid.run(row.run_id) for row in submission.rows]
    for number, run in enumerate(runs[:800]):
        lifecycle.begin(str(run.path), {})
        metrics = MetricsFile(run.metrics(1))
        for step in range(10, 510, 10):
            metrics.write(metric(step))
        metrics.close()
        if number < 600:
            lifecycle.close(str(run.path), 1, "stop signal", "preempted")
        if number < 400:
            write_json(run.result, {"run_id": run.run_id})
    return runs[600:800]


def metric(step: int) -> dict[str, Any]:
    """A record as long as the engine's."""
    rest = dict.fromkeys(
        ("lr", "grad_norm", "step_time_s", "samples_per_s", "time_unix_s"), 0.123456789012
    )
    return {
        "step": step,
        "kind": "train",
        "train/loss": 2.3 / step,
        "train/digit": 1.2345678901234,
        **rest,
    }


def calls(study: Study) -> Counter[str]:
    """Calls of Slurm's commands since the last time."""
    path = study.place / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return Counter(Path(line).name for line in lines)


def once(study: Study, grid: GridFolder, path: str) -> dict[str, Any]:
    """Time the command without cached job states, and squeue alone."""
    times: dict[str, list[float]] = {"status": [], "squeue": []}
    asked: list[Counter[str]] = []
    for _ in range(REPEATS):
        for name, command in (("status", STATUS), ("squeue", ["squeue", "--array", "--noheader"])):
            grid.slurm_cache.unlink(missing_ok=True)
            started_s = time.perf_counter()
            shown = study.cluster.run(*command, cwd=study.place, PATH=path)
            times[name].append(time.perf_counter() - started_s)
            of_it = calls(study)  # the call of squeue alone is counted too
            asked += [of_it] if name == "status" else []
            assert shown.returncode == 0, shown.stderr
            assert name == "squeue" or COUNTS in shown.stdout, shown.stdout[-300:]
    most = {name: max(one[name] for one in asked) for name in ("squeue", "sacct")}
    median = statistics.median(times["status"])
    return {
        "what": "status of 1,000 runs, the whole process",
        "median_s": round(median, 3),
        "min_s": round(min(times["status"]), 3),
        "squeue_alone_s": round(statistics.median(times["squeue"]), 3),
        "calls": most,
        "goal": "at most 0.7 s, one squeue, at most one sacct",
        "reached": median <= 0.7 and most["squeue"] == 1 and most["sacct"] <= 1,
    }


def watched(study: Study, grid: GridFolder, path: str, running: list[RunFolder]) -> dict[str, Any]:
    """Run the command on a terminal while 200 runs write a record every two seconds."""
    calls(study)
    master, slave = pty.openpty()
    environment = study.cluster.environment | {
        "PATH": path,
        "TERM": "xterm",
        "COLUMNS": "120",
        "LINES": "40",
    }
    command = [*STATUS, "--watch"]
    process = subprocess.Popen(
        command,
        cwd=study.place,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    drain = threading.Thread(target=read_all, args=(master,), daemon=True)
    drain.start()
    try:
        time.sleep(5)  # start of the command
        seen, calls_before = psutil.Process(process.pid), calls(study)
        assert process.poll() is None
        cpu, read, begun_s, step = (
            sum(seen.cpu_times()[:2]),
            seen.io_counters().read_chars,
            time.monotonic(),
            510,
        )
        while time.monotonic() < begun_s + WATCHED_S:
            for run in running:
                with run.metrics(1).open("a") as file:
                    file.write(f"{json.dumps(metric(step))}\n")
            step += 10
            time.sleep(2)
        took_s = time.monotonic() - begun_s
        share = (sum(seen.cpu_times()[:2]) - cpu) / took_s
        read_s = (seen.io_counters().read_chars - read) / took_s
        asked = calls(study)
    finally:
        process.terminate()
        process.wait(30)
    return {
        "what": f"status --watch for {WATCHED_S:.0f} s, 200 of 1,000 runs writing every 2 s",
        "share_of_a_core": round(share, 4),
        "read_kib_per_s": round(read_s / 1024),
        "calls": dict(asked),
        "calls_at_start": dict(calls_before),
        "goal": "at most one squeue in ten seconds, 5 % of a core",
        "reached": asked["squeue"] <= took_s / 10 + 1 and share <= 0.05,
    }


def read_all(descriptor: int) -> None:
    """Read the terminal, so that its buffer never fills."""
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        os.close(descriptor)


if __name__ == "__main__":
    main()
