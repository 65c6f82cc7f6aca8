"""Time the table of thousands of runs, against reading the same bytes and against pandas.

    python benchmarks/aggregate.py [--runs 10000]     needs the extra `benchmarks` (pandas)

The run folders have the files that training writes, with 50 metric lines each. Ours is a whole
process of `furnace aggregate --no-figures` with an empty cache. pandas does what a notebook would:
it reads each of the same files and concatenates them, without a table. Both read spec.json,
result.json, the attempts and the metrics of each run. Then `furnace status` of 1,000 runs of a
submission is timed. Its squeue and sacct are replaced by scripts that count their calls.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import record
import yaml

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec, run_ids
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.reading.cache import read_records

RUNS = 10_000
LINES = 50
FINGERPRINT = "feedfeedfeedfeed"
SEEDS = 5
NEW = 10  # runs that end between two tables
STATUS_RUNS = 1000
PANDAS = """
import json, pathlib, sys, time
import pandas
started_s = time.perf_counter()
runs = sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/spec.json"))
def read(pattern):
    return [
        json.loads(path.read_bytes()) | {"run": run.name}
        for run in runs
        for path in sorted(run.glob(pattern))
    ]
metrics = [path for run in runs for path in sorted(run.glob("metrics/*.jsonl"))]
frames = [pandas.read_json(f, lines=True).assign(run=f.parent.parent.name) for f in metrics]
frame = pandas.concat(frames)
patterns = ("spec.json", "result.json", "attempts/*.json")
tables = [pandas.json_normalize(read(pattern)) for pattern in patterns]
assert len(frame) == 50 * len(runs) and [len(table) for table in tables] == [len(runs)] * 3
print(time.perf_counter() - started_s)
"""
COUNTING = """#!/bin/sh
echo "${0##*/}" >> "$ASKED"
"""


def main() -> None:
    """Lay out runs, time each way, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=int, default=RUNS, help=f"number of runs, a multiple of 5 [{RUNS}]"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="measurements of each way, for the median [3]"
    )
    asked = parser.parse_args()
    record.begin()
    with tempfile.TemporaryDirectory() as name:
        rows = tables(Path(name), asked.runs, asked.repeats)
        rows += status(Path(name) / "status", asked.repeats)
    record.write(
        "aggregate" if asked.runs == RUNS else f"aggregate_{asked.runs}",
        rows,
        "All in one run of this script, each a process of its own. Goals are beside the ratios.",
    )


def tables(root: Path, number: int, repeats: int) -> list[dict[str, object]]:
    """Time all tables, against reading the bytes and against pandas."""
    folder, runs = lay_out(root, number)
    new = [folder.run(run_id).path for run_id in run_ids(runs[-NEW:])]
    reading, first, again, collecting = [], [], [], []
    peak_gib = 0.0
    for _ in range(repeats):
        reading.append(read_bytes(folder.path)[0])
        forget(folder)
        for path in new:
            (path / "result.json").rename(path / "later")
        took_s, used_gib = ours(root, exit_code=1)
        for path in new:
            (path / "later").rename(path / "result.json")
        first.append(took_s)
        again.append(ours(root, exit_code=0)[0])
        peak_gib = max(peak_gib, used_gib)
        forget(folder)
        started_s = time.perf_counter()
        read_records(folder)
        collecting.append(time.perf_counter() - started_s)
    command = [sys.executable, "-c", PANDAS, str(folder.path)]
    pandas_s = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    forget(folder)
    num_bytes = evict(folder.path)
    cold_reading_s, _ = read_bytes(folder.path)
    evict(folder.path)
    cold_s, _ = ours(root, exit_code=0)
    first_s, reading_s, again_s = median(first), median(reading), median(again)
    later = f"again after {NEW} new runs"
    return [
        {
            "what": f"files of {number:,} runs read",
            "s": round(reading_s, 2),
            "mb": round(num_bytes / 1e6, 1),
        },
        {"what": "all tables, whole process, our cache empty", "s": round(first_s, 2)},
        {"what": f"{later}, whole process", "s": round(again_s, 2)},
        {"what": "collecting alone: files read, cache written", "s": round(median(collecting), 2)},
        {"what": "pandas: files read and put together, no tables", "s": round(pandas_s, 2)},
        _plain("pandas against all tables", pandas_s / first_s),
        _plain("pandas against collecting alone", pandas_s / median(collecting)),
        _at_most("all tables against the bare reading", first_s / reading_s, 2.5),
        _at_most(f"{later}, against the bare reading", again_s / reading_s, 0.7),
        _plain(f"{later}, against the first time", again_s / first_s),
        _plain("peak memory, GiB", peak_gib),
        {"what": "files read, the system's cache of them empty", "s": round(cold_reading_s, 2)},
        {"what": "all tables, whole process, both caches empty", "s": round(cold_s, 2)},
        _plain("the same, against the bare reading", cold_s / cold_reading_s),
    ]


def status(root: Path, repeats: int) -> list[dict[str, object]]:
    """Time `furnace status` of a grid with ten unfinished runs, and count its calls of Slurm."""
    folder, runs = lay_out(root, STATUS_RUNS)
    ids = run_ids(runs)
    for run_id in ids[-NEW:]:
        folder.run(run_id).result.unlink()
    submission = folder.new_submission()
    asked = [{"row": n, "run_id": i, "to_do": True, "steps": 500} for n, i in enumerate(ids)]
    (submission / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (submission / "grid.yaml").write_text(folder.grid.read_text())
    sent = {"name": "furnace-big-0", "unix_s": 0.0}
    events = [
        sent
        | {
            "event": "intent",
            "kind": "array",
            "base": 0,
            "rows": list(range(len(ids))),
            "cluster": "",
        },
        sent | {"event": "submitted", "job_id": "7"},
    ]
    (submission / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for name in ("squeue", "sacct"):
        (root / name).write_text(COUNTING)
        (root / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{root}:{os.environ['PATH']}",
        "ASKED": str(root / "asked"),
    }
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.status",
        "--grid",
        "big",
        "--runs-root",
        str(root),
    ]
    took, most = [], {"squeue": 0, "sacct": 0}
    for _ in range(repeats):
        folder.slurm_cache.unlink(missing_ok=True)
        (root / "asked").write_text("")
        started_s = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        took.append(time.perf_counter() - started_s)
        words = (root / "asked").read_text().split()
        most = {name: max(number, words.count(name)) for name, number in most.items()}
    return [
        _at_most(f"status of {STATUS_RUNS:,} runs, whole process, s", median(took), 0.7),
        *(_at_most(f"{name} calls of one status", number, 1) for name, number in most.items()),
    ]


def forget(folder: GridFolder) -> None:
    """Delete the cache of aggregate."""
    shutil.rmtree(folder.tables_cache, ignore_errors=True)


def evict(path: Path) -> int:
    """Remove every file below `path` from the page cache, and return their bytes.

    The contents of folders stay in the system's cache.
    """
    os.sync()
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with Path(folder, name).open("rb") as file:
                total += os.fstat(file.fileno()).st_size
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total


def lay_out(root: Path, number: int) -> tuple[GridFolder, list[RunSpec]]:
    """Write finished runs of a grid with one swept key, each with LINES lines of metrics."""
    content = {
        "name": "big",
        "base": {"deepspeed": "zero1", "steps": 500},
        "seeds": list(range(SEEDS)),
        "reference": "base",
        "metric": "test/digit/accuracy",
        "variants": {"base": {}}
        | {f"row{n}": {"loss.alpha": n / 10_000} for n in range(1, number // SEEDS)},
    }
    grid = Grid.model_validate(content)
    runs = expand(grid, {"tridigits": FINGERPRINT})
    folder = GridFolder(root / "big")
    folder.path.mkdir(parents=True)
    folder.grid.write_text(yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False))
    for place, (spec, run_id) in enumerate(zip(runs, run_ids(runs), strict=True)):
        run = folder.run(run_id)
        for part in ("attempts", "metrics"):
            (run.path / part).mkdir(parents=True)
        run.spec.write_text(spec.model_dump_json())
        lines = [
            {"step": 10 * n, "kind": "train", "train/loss": 1 / n, "lr": 1e-3}
            for n in range(1, LINES + 1)
        ]
        run.metrics(1).write_text("".join(json.dumps(line) + "\n" for line in lines))
        ended = {
            "attempt": 1,
            "start_unix_s": 1.0 + place,  # no two attempts are equal
            "end_unix_s": 81.0 + place,
            "reason": "done",
            "step": 500,
            "world_size": 1,
        }
        run.attempt(1).write_text(json.dumps(ended))
        run.result.write_text(
            json.dumps(_result(spec, run_id, 0.8 + (place * 7919 % 1000) / 10_000))
        )
    return folder, runs


def read_bytes(path: Path) -> tuple[float, int]:
    """Read every file below `path`. Return the seconds and the bytes."""
    started_s, total = time.perf_counter(), 0
    for folder, _, names in os.walk(path):
        for name in names:
            with Path(folder, name).open("rb") as file:
                total += len(file.read())
    return time.perf_counter() - started_s, total


def ours(root: Path, exit_code: int) -> tuple[float, float]:
    """Run `furnace aggregate` as a process. Return its seconds and its peak memory in GiB."""
    asked = [
        "--grid",
        "big",
        "--runs-root",
        str(root),
        "--out",
        str(root / "tables"),
        "--no-figures",
    ]
    started_s = time.perf_counter()
    with (root / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "furnace_hpc.aggregate", *asked], stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - started_s
    if os.waitstatus_to_exitcode(status) != exit_code:
        raise SystemExit((root / "said").read_text()[-2000:])
    return took_s, usage.ru_maxrss / 2**20


def _plain(what: str, value: float) -> dict[str, object]:
    return {"what": what, "value": round(value, 2)}


def _at_most(what: str, value: float, goal: float) -> dict[str, object]:
    return _plain(what, value) | {"goal": goal, "reached": value <= goal}


def _result(spec: RunSpec, run_id: str, accuracy: float) -> dict[str, object]:
    return {
        **{"run_id": run_id, "variant": spec.variant, "seed": spec.config.seed, "steps": 500},
        **{
            "selected_step": 400,
            "metrics": {"test/digit/accuracy": accuracy, "test/digit/loss": 0.5},
        },
        **{
            "parameters_sha256": "0" * 64,
            "num_parameters": 187_402,
            "world_size": 1,
            "num_threads": 1,
            "attempts": 1,
        },
        **{
            "train_s": 60.0,
            "wall_s": 80.0,
            "samples_per_s": 250.0,
            "peak_memory_gib": 0.5,
            "device": "a CPU",
        },
        **{
            "precision": "bf16",
            "zero_stage": 1,
            "data_fingerprint": FINGERPRINT,
            "code_hash": "c0dec0de",
        },
        **{"commit": "1234567", "versions": {"torch": "2.13.0"}},
    }


if __name__ == "__main__":
    main()
