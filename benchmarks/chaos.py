"""Run twelve runs on slurm/devcluster with random disturbances.

    python benchmarks/chaos.py --work DIR     about ten minutes; needs root and slurm/devcluster

The disturbances are preemption, requeues, power cuts, controller restarts and a full disk. Goals:
every run ends as done without help, and parameters and table equal those of the undisturbed grid,
which the local queue trains. DIR keeps both grids, and the same command resumes. Goodput is the
seconds of steps that count, divided by the seconds from a run's first start to its result. It is
compared with the first-order formula for the measured rates:

    1 - L (D/2 + u + q) - u / wall

L is interruptions per second, D the seconds between saves, u the seconds from a start to its first
step, and q the wait until a job starts again.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
import yaml  # noqa: E402
from real_study import GRID, RealStudy  # noqa: E402
from slurm_cluster import Cluster, start_cluster  # noqa: E402
from small_disk import only, small_file_system  # noqa: E402

from furnace_hpc.data.sets.tridigits.pack import pack  # noqa: E402
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs  # noqa: E402

SEEDS, STEPS, INTERVAL = 6, 50, 10
PROFILE = {
    "nodes": 2,
    "partition": "preempt",
    "array_parallelism": 2,
    "retries": 20,
    "exclude_after_failures": None,
}
RESOURCES = {"max_attempts": 60, "max_idle_attempts": 20}
OFF_S = 4  # seconds that a node or a disk is gone, or that nodes are taken by another job


def main() -> None:
    """Train the undisturbed grid once, then the disturbed one, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for both grids; kept")
    parser.add_argument("--seed", type=int, default=0, help="seed of the disturbances")
    parser.add_argument("--disturbances", type=int, default=14, help="number of disturbances")
    parser.add_argument(
        "--limit", type=float, default=540, help="seconds until the benchmark gives up"
    )
    asked = parser.parse_args()
    record.begin()
    grid = GRID | {"seeds": list(range(SEEDS)), "resources": RESOURCES}
    grid["base"] = GRID["base"] | {"steps": STEPS, "checkpoint_every": INTERVAL}  # type: ignore[operator]
    work = asked.work.resolve()
    data = work / "data"
    if not data.exists():
        pack(
            TriDigitsKnobs(train=240, val=60, test=90),
            data / "tridigits",
            lambda what, done, total: None,
        )
    kept = work / f"chaos-{asked.seed}"
    if not kept.exists():
        _disturbed(kept, data, grid, random.Random(asked.seed), asked.disturbances, asked.limit)
    facts = json.loads((kept / "facts.json").read_text())
    row = _row(kept, undisturbed(work, grid), facts["disturbances"], facts["seconds"])
    record.write(
        "chaos",
        [row],
        f"seed {asked.seed}; {len(facts['disturbances'])} disturbances, then left alone",
    )


def _disturbed(
    kept: Path, data: Path, grid: dict[str, Any], draw: random.Random, number: int, limit_s: float
) -> None:
    """Run the grid on a disturbed cluster. Keep all its files except checkpoints."""
    with (
        tempfile.TemporaryDirectory(prefix="fb") as folder,
        small_file_system(Path(folder) / "runs", "400m"),
    ):
        cluster = start_cluster(Path(folder) / "c")  # after the mount, so that its nodes see it
        try:
            study = RealStudy(cluster, Path(folder), profile=PROFILE)
            shutil.copytree(data, study.place / "data")
            (study.place / "study.yaml").write_text(yaml.safe_dump(grid))
            study.submitted()
            chaos = Chaos(study, draw)
            seconds = chaos.until_done(number, limit_s)
        finally:
            cluster.down()
            leave = shutil.ignore_patterns("checkpoints", "c", "data", "shims")
            shutil.copytree(folder, kept, symlinks=True, ignore=leave)
        (kept / "facts.json").write_text(
            json.dumps({"disturbances": chaos.done, "seconds": seconds})
        )


class Chaos:
    """Disturbs a study on a cluster at random."""

    def __init__(self, study: RealStudy, draw: random.Random) -> None:
        self._study, self._cluster, self._draw = study, study.cluster, draw
        self.done: list[str] = []

    def until_done(self, disturbances: int, limit_s: float) -> float:
        """Disturb this often, then wait for the table. Return the seconds."""
        ways: dict[str, Callable[[Cluster], None]] = {
            "preemption": self._preempt,
            "requeue": self._requeue,
            "power cut": self._cut_power,
            "controller restarted": lambda cluster: cluster.restart_controller(),
            "disk full": self._fill_disk,
        }
        began_s, table = time.monotonic(), self._study.place / "results/study/table.md"
        runs = 2 * SEEDS
        while time.monotonic() - began_s < limit_s:
            done = len(list(self._study.folder.glob("*/result.json")))
            if done == runs and table.exists() and f"{SEEDS} of" not in table.read_text():
                break
            if len(self.done) < disturbances and done < runs and self._is_training():
                # All kinds occur once, in random order, before any is repeated.
                if len(self.done) % len(ways) == 0:
                    order = self._draw.sample(list(ways), len(ways))
                way = order[len(self.done) % len(ways)]
                print(f"{time.monotonic() - began_s:4.0f} s, {done} done: {way}", flush=True)
                ways[way](self._cluster)
                self.done.append(way)
                time.sleep(self._draw.uniform(2, 14))
            time.sleep(0.5)
        return time.monotonic() - began_s

    def _is_training(self) -> bool:
        """Whether a rank has written a step. A disturbance before the first step has no effect."""
        return any(path.stat().st_size for path in self._study.folder.glob("*/metrics/*.jsonl"))

    def _preempt(self, cluster: Cluster) -> None:
        wanted = (
            "--partition=a100",
            "--nodes=4",
            "--exclusive",
            f"--wrap=sleep {OFF_S}",
            "--output=/dev/null",
        )
        cluster.run("sbatch", *wanted)

    def _requeue(self, cluster: Cluster) -> None:
        running = cluster.run(
            "squeue", "--noheader", "--array", "--states=R", "--format=%i|%K"
        ).stdout.split()
        elements = [
            job for job, _, index in (line.partition("|") for line in running) if index.isdigit()
        ]
        if elements:
            cluster.run("scontrol", "requeue", self._draw.choice(elements))

    def _cut_power(self, cluster: Cluster) -> None:
        node = f"node{self._draw.randrange(4)}"
        cluster.kill_node(node)
        time.sleep(OFF_S)
        cluster.start_node(node)

    def _fill_disk(self, cluster: Cluster) -> None:
        with only(self._study.place / "runs", free_kib=16):
            time.sleep(OFF_S)


def undisturbed(work: Path, grid: dict[str, Any]) -> Path:
    """Run the same grid in the local queue, except for runs that are already done."""
    calm = work / "calm"
    calm.mkdir(parents=True, exist_ok=True)
    (calm / "study.yaml").write_text(yaml.safe_dump(grid))
    words = [
        "--grid",
        "study.yaml",
        "--data-root",
        "../data",
        "--cluster",
        "local",
        "--set",
        "resources.processes_per_node=2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "furnace_hpc.submit", *words],
        cwd=calm,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return calm


def _row(kept: Path, calm: Path, disturbances: list[str], took_s: float) -> dict[str, Any]:
    runs = sorted(path for path in (kept / "runs/study").glob("*-s*-*") if path.is_dir())
    results = {
        path.name: json.loads((path / "result.json").read_text()) for path in runs if _is_done(path)
    }
    theirs = {
        path.parent.name: json.loads(path.read_text())
        for path in calm.glob("runs/study/*-s*-*/result.json")
    }
    same = sum(
        result["parameters_sha256"] == theirs[name]["parameters_sha256"]
        for name, result in results.items()
    )
    metrics = sum(result["metrics"] == theirs[name]["metrics"] for name, result in results.items())
    attempts = {path.name: _attempts(path) for path in runs}
    reasons = Counter(attempt["reason"] for records in attempts.values() for attempt in records)
    tables = [table_rows(place / "results/study/table.md") for place in (kept, calm)]
    return {
        "what": f"{len(runs)} runs of 2 nodes, {len(disturbances)} disturbances",
        "disturbances": dict(Counter(disturbances)),
        "done": len(results),
        "parameters equal": same,
        "metrics equal": metrics,
        "table identical": tables[0] == tables[1],
        "attempts": sum(map(len, attempts.values())),
        "attempts ended as": dict(reasons),
        **_goodput([path for path in runs if _is_done(path)]),
        "seconds": round(took_s),
        "reached": len(results) == same == metrics == 2 * SEEDS and tables[0] == tables[1],
    }


def _goodput(runs: list[Path]) -> dict[str, Any]:
    """Goodput as measured and by the formula, from the runs' records. Values are medians."""
    productive_s = wall_s = interruptions = 0.0
    starts, waits, steps = [], [], []
    for run in runs:
        records, by_step = _attempts(run), {}
        for attempt in records:
            trained = _trained(run, attempt["attempt"])
            by_step |= {line["step"]: line["step_time_s"] for line in trained}
            if trained:
                starts.append(trained[0]["time_unix_s"] - attempt["start_unix_s"])
        steps += by_step.values()
        productive_s += sum(by_step.values())
        wall_s += records[-1]["end_unix_s"] - records[0]["start_unix_s"]
        interruptions += len(records) - 1
        waits += [max(0.0, b["start_unix_s"] - a["end_unix_s"]) for a, b in pairwise(records)]
    u, q, D = (
        statistics.median(starts),
        statistics.median(waits or [0]),
        INTERVAL * statistics.mean(steps),
    )
    lost = interruptions / wall_s * (D / 2 + u + q) + len(runs) * u / wall_s
    return {
        "goodput": round(productive_s / wall_s, 3),
        "goodput by the formula": round(1 - lost, 3),
        "of which": {
            "D_s": round(D, 2),
            "u_s": round(u, 1),
            "q_s": round(q, 1),
            "interruptions": int(interruptions),
        },
    }


def _attempts(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "attempts").glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in files]


def _trained(run: Path, attempt: int) -> list[dict[str, Any]]:
    path = run / f"metrics/{attempt}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in records if line["kind"] == "train"]


def _is_done(run: Path) -> bool:
    return (run / "result.json").exists()


def table_rows(path: Path) -> list[str]:
    """The rows of the table without its costs, because disturbances may only cost time."""
    if not path.exists():
        return ["none"]
    rows = [line.split(" | ") for line in path.read_text().splitlines() if line.startswith("| ")]
    costs = rows[0].index("train (s)")
    return [" | ".join(row[:costs]) for row in rows]


if __name__ == "__main__":
    main()
