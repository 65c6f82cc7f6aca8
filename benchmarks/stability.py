"""Repeat the demo's study with disjoint sets of seeds, and count the verdicts that differ.

python benchmarks/stability.py --work DIR                     10 sets; hours. Goal: no verdict flips
python benchmarks/stability.py --work DIR --sets 2 --set steps=20

One grid with all seeds is submitted to this machine's queue. Then the product makes a table of each
set of seeds, as if only these had been submitted. A flip is a row that is better in one table and
worse in another. A row that is decided in one table only is counted apart. The same holds for the
effects of factors.
If it is cut off, give the same command again: DIR keeps the runs.
"""

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record
import yaml

from furnace_hpc.config.grids.grid import Grid, read_grid, with_settings
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.reading.cache import read_records
from furnace_hpc.tables.reading.submitted import submitted_runs
from furnace_hpc.tables.statistics.factorial import Effect
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Ablation, Row

GRID = Path(__file__).parent.parent / "experiments" / "ablation.yaml"


def main() -> None:
    """Submit what is missing, and write the result when all runs are done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; kept")
    parser.add_argument("--sets", type=int, default=10, help="number of disjoint sets of seeds")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="key=value")
    parser.add_argument("--data-root", type=Path, help="folder of the packed data [DIR/data]")
    options = parser.parse_args()
    record.begin()
    work = options.work.resolve()
    sets = seed_sets(read_grid(GRID), options.sets)
    path = write_grid(work, [seed for one in sets for seed in one])
    submit(path, work, options.data_root or work / "data", options.settings)
    tables = tables_of(with_settings(read_grid(path), options.settings), work / "runs", sets)
    rows = [outcome(list(same_row)) for same_row in zip(*map(compared, tables), strict=True)]
    rows.append(total(rows))
    num_runs = sum(len(table.runs) for table in tables)
    record.write("stability", rows, f"{len(sets)} sets of {len(sets[0])} seeds, {num_runs} runs")


def seed_sets(grid: Grid, number: int) -> list[list[int]]:
    """The grid's own seeds, and as many new ones in each further set."""
    own = sorted(grid.seeds)
    first = own[-1] + 1
    size = len(own)
    new = [list(range(first + i * size, first + (i + 1) * size)) for i in range(number - 1)]
    return [own, *new]


def write_grid(work: Path, seeds: list[int]) -> Path:
    """Write the demo's grid with these seeds."""
    content = yaml.safe_load(GRID.read_text())
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content | {"seeds": seeds}, sort_keys=False))
    return path


def submit(grid: Path, work: Path, data: Path, settings: list[str]) -> None:
    """Train the runs that are missing. Progress goes to the terminal."""
    command = [sys.executable, "-P", "-m", "furnace_hpc.submit", "--grid", str(grid)]
    command += ["--cluster", "local", "--runs-root", str(work / "runs"), "--data-root", str(data)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, cwd=work)
    if done.returncode:
        sys.exit(f"submit exits with {done.returncode}: give the same command again to continue")


def tables_of(grid: Grid, runs: Path, sets: Sequence[Sequence[int]]) -> list[Ablation]:
    """The table of each set of seeds, with verdicts as if no other seeds had been submitted."""
    folder = GridFolder(runs / grid.name)
    records = read_records(folder)
    specs = submitted_runs(grid, folder, records).runs
    tables = []
    for seeds in sets:
        part = grid.model_copy(update={"seeds": tuple(seeds)})
        chosen = [spec for spec in specs if spec.config.seed in seeds]
        tables.append(collect(part, chosen, folder, records=records))
    return tables


def compared(table: Ablation) -> list[Row | Effect]:
    """The rows beside the reference, and the effects of factors, in the order of the table."""
    missing = [run.folder.run_id for run in table.runs if run.result is None]
    if missing:
        sys.exit(f"{len(missing)} runs have no result, such as {missing[0]}: see furnace status")
    found: list[Row | Effect] = [*table.rows]
    if table.effects:
        found += table.effects.effects
    return [one for one in found if one.verdict is not None]


def outcome(same: list[Row | Effect]) -> dict[str, Any]:
    """How often the sets agree on one row or effect."""
    first = same[0]
    name = {"row": first.variant} if isinstance(first, Row) else {"effect": first.name}
    verdicts = [str(one.verdict) for one in same]
    differences = [100 * one.difference.mean for one in same if one.difference]
    return {
        **name,
        "verdicts": dict(sorted(Counter(verdicts).items())),
        "differences_points": [round(value, 2) for value in differences],
        **changes(verdicts),
    }


def changes(verdicts: Sequence[str]) -> dict[str, int]:
    """Pairs of sets that contradict each other, and pairs of which one set decides nothing."""
    counts = Counter(verdicts)
    undecided = counts[Verdict.UNDECIDED]
    better, worse, equal = (
        counts[verdict] for verdict in (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT)
    )
    return {
        "better_against_worse": better * worse,
        "equivalent_against_another": equal * (better + worse),
        "decided_against_undecided": undecided * (len(verdicts) - undecided),
    }


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum over rows, and whether the goal is reached."""
    names = changes([])
    sums = {name: sum(row[name] for row in rows) for name in names}
    flips = sums["better_against_worse"]
    return {"row": "all", **sums, "goal": "no better against worse", "reached": flips == 0}


if __name__ == "__main__":
    main()
