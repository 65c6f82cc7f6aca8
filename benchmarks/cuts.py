"""Cut the network under real training on slurm/devcluster, in twelve ways.

    python benchmarks/cuts.py --work DIR     about fifteen minutes; needs root and slurm/devcluster

Each node has a network of its own (`up --net separate`). Each run of a grid trains on two nodes
with ZeRO-2, and gets one kind of cut. Cuts of the controller hit a second grid. Goals: every run
ends as done without help, with parameters and a table equal to those of the undisturbed grid, which
the local queue trains. It takes at most one attempt more than the cut itself costs. DIR keeps all
grids.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
import yaml  # noqa: E402
from chaos import table_rows, undisturbed  # noqa: E402
from network_cuts import (  # noqa: E402
    CONTROLLER_CUTS,
    HANG_S,
    NODE_CUTS,
    PATIENT_S,
    Cut,
    Victim,
    read_attempts,
    strike,
)
from real_study import GRID, RealStudy  # noqa: E402
from slurm_cluster import start_cluster  # noqa: E402

from furnace_hpc.data.sets.tridigits.pack import pack  # noqa: E402
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs  # noqa: E402

STEPS, NODES, PARALLEL = 90, 14, 4
SPARE_ATTEMPTS = 1  # more than the cut itself costs
RESOURCES = {"max_attempts": 20, "max_idle_attempts": 10}
OPTIONS = ("--net", "separate", "--nodes", str(NODES), "--cpus", "1", "--gpus", "0")


def main() -> None:
    """Run both grids, and compare them with undisturbed ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for all grids; kept")
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds until the benchmark gives up on a grid"
    )
    parser.add_argument(
        "--only", default="", help="only the cuts whose name contains this; nothing is recorded"
    )
    asked = parser.parse_args()
    if not asked.only:
        record.begin()
    work = asked.work.resolve()
    data = work / "data"
    if not data.exists():
        knobs = TriDigitsKnobs(train=240, val=60, test=90)
        pack(knobs, data / "tridigits", lambda what, done, total: None)
    rows = []
    for name, cuts, parallel in (
        ("nodes", NODE_CUTS, PARALLEL),
        ("controller", CONTROLLER_CUTS, 1),
    ):
        chosen = [cut for cut in cuts if asked.only in cut.what]
        if chosen:
            rows += _grid_of(work / name, data, chosen, parallel, asked.limit)
    for row in rows:
        print(row, flush=True)
    if not asked.only:
        record.write("cuts", rows, f"{STEPS} steps, ZeRO-2, two nodes per run, 1 rank per node")


def _grid_of(
    kept: Path, data: Path, cuts: list[Cut], parallel: int, limit_s: float
) -> list[dict[str, Any]]:
    """Train a grid with a run per cut. Return a row per cut, and one of the grid."""
    grid = GRID | {
        "seeds": [0],
        "reference": "cut0",
        "resources": RESOURCES,
        "base": GRID["base"] | {"steps": STEPS, "evaluation": {"every": 45}},  # type: ignore[operator]
        "variants": {f"cut{number}": _variant(number, cut) for number, cut in enumerate(cuts)},
    }
    if not kept.exists():
        _train(kept, data, grid, cuts, parallel, limit_s)
    calm = kept.parent / f"calm-{kept.name}"
    calm.mkdir(exist_ok=True)
    if not (calm / "data").exists():
        (calm / "data").symlink_to(data)
    return _rows(kept, undisturbed(calm, grid), cuts)


def _variant(number: int, cut: Cut) -> dict[str, float]:
    return {"loss.alpha": 0.01 * number, "hang_timeout_s": PATIENT_S if cut.patient else HANG_S}


def _train(
    kept: Path, data: Path, grid: dict[str, Any], cuts: list[Cut], parallel: int, limit_s: float
) -> None:
    """Run the grid on a cluster whose network is cut. Keep all its files except checkpoints."""
    profile = {"nodes": 2, "array_parallelism": parallel, "retries": 20}
    profile |= {"exclude_after_failures": None}
    with tempfile.TemporaryDirectory(prefix="fc") as folder:
        cluster = start_cluster(Path(folder) / "c", *OPTIONS)
        try:
            study = RealStudy(cluster, Path(folder), profile=profile)
            shutil.copytree(data, study.place / "data")
            (study.place / "study.yaml").write_text(yaml.safe_dump(grid))
            study.submitted()
            _strike_all(study, cuts, limit_s)
        finally:
            cluster.down()
            leave = shutil.ignore_patterns("checkpoints", "c", "data")
            shutil.copytree(folder, kept, symlinks=True, ignore=leave)


def _strike_all(study: RealStudy, cuts: list[Cut], limit_s: float) -> None:
    """Cut each run's network when it trains, and wait for the table."""
    began_s, table = time.monotonic(), study.place / "results/study/table.md"
    struck: set[int] = set()
    while time.monotonic() - began_s < limit_s:
        done = len(list(study.folder.glob("cut*/result.json")))
        if done == len(cuts) and table.exists() and not study.queue():
            break
        for number, cut in enumerate(cuts):
            folders = list(study.folder.glob(f"cut{number}-*/metrics"))
            if number not in struck and folders:
                struck.add(number)
                print(f"{time.monotonic() - began_s:4.0f} s, {done} done: {cut.what}", flush=True)
                victim = Victim(study.cluster, folders[0].parent)
                threading.Thread(target=strike, args=(cut, victim), daemon=True).start()
        time.sleep(0.5)


def _rows(kept: Path, calm: Path, cuts: list[Cut]) -> list[dict[str, Any]]:
    rows, same = [], []
    for number, cut in enumerate(cuts):
        pattern = f"runs/study/cut{number}-*"
        attempts = [path for run in kept.glob(pattern) for path in read_attempts(run)]
        reasons = [attempt.get("reason") for attempt in attempts]
        ours, theirs = (_results(place, pattern) for place in (kept, calm))
        equal = bool(ours) and ours == theirs
        same.append(equal)
        rows.append(
            {
                "what": cut.what,
                "attempts": reasons,
                "fewest attempts": cut.fewest,
                "parameters equal": equal,
                "reached": equal and len(reasons) <= cut.fewest + SPARE_ATTEMPTS,
            }
        )
    tables = [table_rows(place / "results/study/table.md") for place in (kept, calm)]
    summary = {
        "what": f"{kept.name}: {len(cuts)} kinds of cuts",
        "done with equal parameters": sum(same),
        "table equal": tables[0] == tables[1],
        "reached": all(same) and tables[0] == tables[1],
    }
    return [*rows, summary]


def _results(place: Path, pattern: str) -> list[Any]:
    """What two results of one run must have in common. Empty if it has none."""
    results = [json.loads(path.read_text()) for path in place.glob(f"{pattern}/result.json")]
    return [(result["parameters_sha256"], result["metrics"]) for result in results]


if __name__ == "__main__":
    main()
