"""How long a table of thousands of runs takes: against the bare reading of the same bytes, and against pandas.

python benchmarks/aggregate.py [--runs 10000]     against pandas too, where it is installed

Run folders are laid out as the writers leave them, 50 metric lines each. Ours is the whole process of
`aggregate --no-figures`; all files are in the system's cache (they have just been written).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import record
import yaml

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.spec.config import RunSpec
from furnace_hpc.spec.grid import Grid
from furnace_hpc.spec.rows import expand

LINES = 50
FINGERPRINT = "feedfeedfeedfeed"
SEEDS = 5
MAX_PANDAS = 1000  # runs; its time grows with their number, and it is not waited for any longer
PANDAS = """
import json, pathlib, sys, time
import pandas
started_s = time.perf_counter()
files = sorted(pathlib.Path(sys.argv[1]).glob("*/metrics/*.jsonl"))[:int(sys.argv[2])]
frame = pandas.concat([pandas.read_json(f, lines=True).assign(run=f.parent.parent.name) for f in files])
results = pandas.json_normalize([json.loads((f.parent.parent / "result.json").read_bytes()) for f in files])
table = results.groupby("variant")["metrics.test/digit/accuracy"].agg(["count", "mean", "std"])
assert len(frame) == 50 * len(files) and len(table) == -(-len(files) // 5)
print(time.perf_counter() - started_s)
"""


def main() -> None:
    """Lay out runs, time each way, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="number of runs, a multiple of 5 [10000]")
    number = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder, runs = lay_out(root, number)
        for spec in runs[-10:]:
            (folder.run(spec.run_id).path / "result.json").rename(folder.run(spec.run_id).path / "later")
        reading_s, num_bytes = read_bytes(folder.path)
        first_s, peak_gib = ours(root, exit_code=1)
        for spec in runs[-10:]:
            (folder.run(spec.run_id).path / "later").rename(folder.run(spec.run_id).path / "result.json")
        again_s, _ = ours(root, exit_code=0)
        rows: list[dict[str, object]] = [
            {"what": f"bytes of {number:,} runs read", "s": round(reading_s, 2), "mb": round(num_bytes / 1e6, 1)},
            {"what": "all tables, whole process", "s": round(first_s, 2)},
            _ratio("against the bare reading", first_s / reading_s, 6, at_least=False),
            _ratio("again after 10 new runs, against the first time", again_s / first_s, 0.2, at_least=False),
            _ratio("peak memory, GiB", peak_gib, 1, at_least=False),
        ]
        if find_spec("pandas"):
            count = min(number, MAX_PANDAS)
            command = [sys.executable, "-c", PANDAS, str(folder.path), str(count)]
            pandas_s = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"what": f"pandas, read_json + concat, {count:,} runs", "s": round(pandas_s, 2)})
            per_run = (pandas_s / count) / (first_s / number)
            rows.append(_ratio("pandas against ours, time per run", per_run, 15, at_least=True))
        else:
            rows.append({"what": "pandas is not installed: not compared"})
    record.write("aggregate", rows, "Tables come from results and the ledger; metric lines are read for figures only.")


def lay_out(root: Path, number: int) -> tuple[GridFolder, list[RunSpec]]:
    """Finished runs of a grid of one swept key, each with one attempt and LINES lines of metrics."""
    content = {
        "name": "big",
        "base": {"deepspeed": "zero1", "steps": 500},
        "seeds": list(range(SEEDS)),
        "reference": "base",
        "metric": "test/digit/accuracy",
        "variants": {"base": {}} | {f"row{n}": {"loss.alpha": n / 10_000} for n in range(1, number // SEEDS)},
    }
    grid = Grid.model_validate(content)
    runs = expand(grid, {"tridigits": FINGERPRINT})
    folder = GridFolder(root / "big")
    folder.path.mkdir(parents=True)
    folder.grid.write_text(yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False))
    for place, spec in enumerate(runs):
        run = folder.run(spec.run_id)
        for part in ("attempts", "metrics"):
            (run.path / part).mkdir(parents=True)
        run.spec.write_text(spec.model_dump_json())
        lines = [{"step": 10 * n, "kind": "train", "train/loss": 1 / n, "lr": 1e-3} for n in range(1, LINES + 1)]
        run.metrics(1).write_text("".join(json.dumps(line) + "\n" for line in lines))
        ended = {"attempt": 1, "start_unix_s": 1.0, "end_unix_s": 81.0, "reason": "done", "step": 500, "world_size": 1}
        run.attempt(1).write_text(json.dumps(ended))
        run.result.write_text(json.dumps(_result(spec, 0.8 + (place * 7919 % 1000) / 10_000)))
    return folder, runs


def read_bytes(path: Path) -> tuple[float, int]:
    """Seconds that reading every file below `path` takes, and its bytes."""
    started_s, total = time.perf_counter(), 0
    for folder, _, names in os.walk(path):
        for name in names:
            with Path(folder, name).open("rb") as file:
                total += len(file.read())
    return time.perf_counter() - started_s, total


def ours(root: Path, exit_code: int) -> tuple[float, float]:
    """Seconds of `aggregate` as a process of its own, and its peak of resident memory in GiB."""
    asked = ["--grid", "big", "--runs-root", str(root), "--out", str(root / "tables"), "--no-figures"]
    started_s = time.perf_counter()
    with (root / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", "furnace_hpc.aggregate", *asked], stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - started_s
    if os.waitstatus_to_exitcode(status) != exit_code:
        raise SystemExit((root / "said").read_text()[-2000:])
    return took_s, usage.ru_maxrss / 2**20


def _ratio(what: str, value: float, goal: float, at_least: bool) -> dict[str, object]:
    return {
        "what": what,
        "value": round(value, 2),
        "goal": goal,
        "reached": value >= goal if at_least else value <= goal,
    }


def _result(spec: RunSpec, accuracy: float) -> dict[str, object]:
    return {
        **{"run_id": spec.run_id, "variant": spec.variant, "seed": spec.config.seed, "steps": 500},
        **{"selected_step": 400, "metrics": {"test/digit/accuracy": accuracy, "test/digit/loss": 0.5}},
        **{"parameters_sha256": "0" * 64, "num_parameters": 187_402, "world_size": 1, "num_threads": 1, "attempts": 1},
        **{"train_s": 60.0, "wall_s": 80.0, "samples_per_s": 250.0, "peak_memory_gib": 0.5, "device": "a CPU"},
        **{"precision": "bf16", "zero_stage": 1, "data_fingerprint": FINGERPRINT, "code_hash": "c0dec0de"},
        **{"commit": "1234567", "versions": {"torch": "2.13.0"}},
    }


if __name__ == "__main__":
    main()
