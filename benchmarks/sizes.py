"""Measure submit and status of 100 to 100,000 runs: seconds, CPU seconds, and the growth per run.

    python benchmarks/sizes.py [--sizes 100 1000 10000 100000]     six minutes

Slurm's commands are scripts that answer at once (pretend_slurm.py), so only Furnace's own time is
measured. Of the runs, a fifth waits, a fifth trains, a fifth was preempted and waits again, and the
others are done. Each measurement is a whole process. Goals: status of 1,000 runs in 0.7 s, of
10,000 in 3 s and of 100,000 in 30 s, and at most one squeue and one sacct for any number.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
import yaml  # noqa: E402
from login_study import GRID, pack  # noqa: E402
from pretend_slurm import QueuedJob, calls, install, write_queue  # noqa: E402

from furnace_hpc.runs.folder import GridFolder, RunFolder  # noqa: E402
from furnace_hpc.runs.journal import Submission, submissions  # noqa: E402

SEEDS = 5
STEPS = 500
STATUS_GOALS_S = {1000: 0.7, 10_000: 3.0, 100_000: 30.0}
PROFILE = {"name": "dev", "executor": "slurm", "gpu_flag": None, "max_array_size": 1_000_001}


class Times(NamedTuple):
    """Seconds of one process: of the clock, and of its CPUs with its children's."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure each size, and write a row for each command and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5, help="of up to 10,000 runs [5]")
    asked = parser.parse_args()
    record.begin()
    rows: list[dict[str, Any]] = []
    for size in asked.sizes:
        repeats = asked.repeats if size <= 10_000 else 1
        with tempfile.TemporaryDirectory(prefix="fb") as folder:
            rows += measure(Path(folder), size, repeats)
    record.write("sizes", rows + growth(rows))


def measure(place: Path, size: int, repeats: int) -> list[dict[str, Any]]:
    """Submit so many runs, let them reach their states, and show the status, some times each."""
    environment = install(place / "slurm")
    write_study(place, size)
    took: dict[str, list[Times]] = {"submit": [], "status": []}
    for repeat in range(repeats):
        root = f"runs-{repeat}"
        words = ["--grid", "big.yaml", "--cluster", "dev", "--yes", "--runs-root", root]
        took["submit"].append(run(place, environment, "submit", *words))
    grid = GridFolder(place / root / "big")
    [submission] = submissions(grid)
    write_queue(place / "slurm", reach_states(grid, submission))
    calls(place / "slurm")
    for _ in range(repeats):
        grid.slurm_cache.unlink(missing_ok=True)
        words = ["--grid", "big", "--runs-root", root]
        took["status"].append(run(place, environment, "status", *words))
        check_counts((place / "said").read_text(), size)
    made = calls(place / "slurm")
    rows = [row(command, size, times) for command, times in took.items()]
    goal_s = STATUS_GOALS_S.get(size)
    rows[1] |= {"squeue_calls": made["squeue"] // repeats, "sacct_calls": made["sacct"] // repeats}
    if goal_s is not None:
        rows[1] |= {"goal_s": goal_s, "reached": rows[1]["wall_s"] <= goal_s}
    return rows


def check_counts(said: str, size: int) -> None:
    """Exit unless status has shown the states that the runs have."""
    each = size // 5
    wanted = f"{size:,} runs: {2 * each:,} queued, {each:,} running, {2 * each:,} done"
    if wanted not in said:
        raise SystemExit(f"status shows other states, wanted {wanted!r}: {said[-500:]}")


def row(command: str, size: int, times: list[Times]) -> dict[str, Any]:
    """The medians of one command at one size."""
    wall_s, cpu_s = (median(values) for values in zip(*times, strict=True))
    return {
        "what": f"{command} of {size:,} runs",
        "command": command,
        "runs": size,
        "wall_s": round(wall_s, 3),
        "cpu_s": round(cpu_s, 3),
    }


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CPU time per further run between each size and the next, which shows whether it is linear."""
    found = []
    for command in ("submit", "status"):
        sizes = [row for row in rows if row["command"] == command]
        for small, large in pairwise(sizes):
            more_s, more = large["cpu_s"] - small["cpu_s"], large["runs"] - small["runs"]
            what = f"{command}: CPU time per run, from {small['runs']:,} to {large['runs']:,}"
            found.append({"what": what, "us_per_run": round(1e6 * more_s / more, 1)})
    return found


def write_study(
    place: Path, size: int, profile: Mapping[str, Any] = {}, **more: dict[str, Any]
) -> None:
    """A grid of so many runs, its packed data, and the profile, with more keys of both."""
    (place / "slurm" / "clusters").mkdir(parents=True)
    (place / "slurm" / "clusters" / "dev.yaml").write_text(yaml.safe_dump(PROFILE | dict(profile)))
    pack(place / "data" / "tridigits")
    variants = {f"row{n}": {"loss.alpha": n / 1_000_000} for n in range(1, size // SEEDS)}
    grid = GRID | {
        "name": "big",
        "base": GRID["base"] | {"steps": STEPS},
        "seeds": list(range(SEEDS)),
        "variants": {"base": {}} | variants,
    }
    (place / "big.yaml").write_text(yaml.safe_dump(grid | more, sort_keys=False))


def run(place: Path, environment: dict[str, str], command: str, *words: str) -> Times:
    """Run a command of Furnace as a process, and return its times."""
    started_s = time.perf_counter()
    with (place / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", f"furnace_hpc.{command}", *words],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started_s
    if status:
        raise SystemExit((place / "said").read_text()[-2000:])
    return Times(wall_s, usage.ru_utime + usage.ru_stime)


def reach_states(grid: GridFolder, submission: Submission) -> list[QueuedJob]:
    """Write the files of runs in all states. Return the jobs of those that have one."""
    [array] = [call for call in submission.sbatch_calls() if call.kind == "array"]
    [follow_up] = [call for call in submission.sbatch_calls() if call.kind == "follow-up"]
    jobs = [QueuedJob(follow_up.job_id, "N/A", "PENDING", "Dependency", follow_up.name)]
    elements = array.elements  # once: it builds a dict of all rows
    for line in submission.rows:
        job_id, kind = elements[line.row], line.row % 5
        state, reason = "PENDING", "Resources"
        if kind:
            write_run(grid.run(line.run_id), job_id, kind)
        if kind == 1:
            state, reason = "RUNNING", "None"
        if kind < 3:
            index = str(line.row - array.base)
            jobs.append(QueuedJob(array.job_id, index, state, reason, array.name))
    return jobs


def write_run(run: RunFolder, job_id: str, kind: int) -> None:
    """Write a run that trains (1), was preempted (2), or is done."""
    for part in ("attempts", "metrics", "logs", "verdicts"):
        (run.path / part).mkdir(parents=True)
    attempt = {"attempt": 1, "start_unix_s": time.time() - 900, "job_id": job_id, "gpus": 1}
    attempt |= {"holder": {"host": "node17", "pid": 1}, "end_unix_s": None}
    if kind != 1:
        reason = "preempted" if kind == 2 else "done"
        attempt |= {"end_unix_s": time.time() - 300, "reason": reason, "step": STEPS}
    run.attempt(1).write_text(json.dumps(attempt, indent=2))
    rest = dict.fromkeys(("lr", "grad_norm", "step_time_s", "samples_per_s"), 0.123456789012)
    records = [
        {"step": step, "kind": "train", "train/loss": 2.3 / step, "time_unix_s": 1.0, **rest}
        for step in range(10, STEPS + 1, 10)
    ]
    run.metrics(1).write_text("".join(json.dumps(one) + "\n" for one in records))
    run.verdict(1, 0).write_text('{"rank": 0, "verdict": "entered", "step": 0}\n')
    if kind > 2:
        run.result.write_text(json.dumps({"run_id": run.run_id}))


if __name__ == "__main__":
    main()
