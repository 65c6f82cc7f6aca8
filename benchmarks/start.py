"""Time short runs of the local queue: ranks forked from a warm process, or fresh processes.

python benchmarks/start.py [--pairs 5]     goal: at least 5 s less per run

Each time is from the start of a run to its end, as its attempt records it: 20 steps of a small
network. Both ways alternate. Of the forked runs the first one waits for the imports, and is shown
apart. Final parameters must be equal.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import record  # noqa: E402
from local_study import command, write_grid  # noqa: E402

from furnace_hpc.data.sets.tridigits.pack import pack  # noqa: E402
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs  # noqa: E402
from furnace_hpc.launch.local_ranks.jobs import FRESH  # noqa: E402

STEPS, GOAL_S = 20, 5.0
ROWS = "{first: {}, second: {loss.beta: 0.1}, third: {loss.beta: 0.2}}"


def main() -> None:
    """Run the pairs and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    record.begin()
    times: dict[str, list[float]] = {"fresh": [], "forked": [], "imports": []}
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        pack(TriDigitsKnobs(train=240, val=60, test=90), place / "data" / "tridigits", _silent)
        grid = write_grid(place, STEPS, ROWS)
        for number in range(pairs):
            fresh = _runs(grid, place / "data", f"fresh-{number}", "1")
            forked = _runs(grid, place / "data", f"forked-{number}", "")
            assert [run["sha"] for run in fresh] == [run["sha"] for run in forked]
            times["fresh"] += [run["wall_s"] for run in fresh]
            times["imports"].append(forked[0]["wall_s"])
            times["forked"] += [run["wall_s"] for run in forked[1:]]
    medians = {way: round(statistics.median(values), 2) for way, values in times.items()}
    saved_s = round(medians["fresh"] - medians["forked"], 2)
    row: dict[str, Any] = {
        "what": f"a run of {STEPS} steps, seconds (median)",
        "fresh process": medians["fresh"],
        "forked": medians["forked"],
        "forked, first run of a server": medians["imports"],
        "saved_s": saved_s,
        "goal": GOAL_S,
        "reached": saved_s >= GOAL_S,
    }
    record.write("start", [row], f"{pairs} pairs of 3 runs, one at a time, alternating")


def _runs(grid: Path, data: Path, root: str, fresh: str) -> list[dict[str, Any]]:
    """Train all rows, one at a time. Return their times and hashes in the order of their starts."""
    one_core = {min(os.sched_getaffinity(0))}
    subprocess.run(
        command(grid, data, "--runs-root", root),
        cwd=grid.parent,
        env=os.environ | {FRESH: fresh},
        check=True,
        capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, one_core),
    )
    found = []
    for folder in (grid.parent / root / "local").glob("*-s0-*"):
        attempt = json.loads((folder / "attempts" / "1.json").read_text())
        result = json.loads((folder / "result.json").read_text())
        start_s = attempt["start_unix_s"]
        wall_s = attempt["end_unix_s"] - start_s
        found.append({"start": start_s, "wall_s": wall_s, "sha": result["parameters_sha256"]})
    return sorted(found, key=lambda run: run["start"])


def _silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


if __name__ == "__main__":
    main()
