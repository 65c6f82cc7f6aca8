"""From a grid's folder to the files that a paper takes: `results/<grid>/`."""

import json
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, read_grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.runs.folder import GridFolder, write_atomically
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.runs.state import read_status
from furnace_hpc.runs.submitted import grid_name, submit_first
from furnace_hpc.tables.cache import Records, read_records
from furnace_hpc.tables.collect import HowItIs, collect
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import to_csv, to_markdown, to_runs_csv
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.table import Ablation, Note

TABLES = ("runs.csv", "table.csv", "table.md", "table.tex", "report.html")


def aggregate(
    grid: Grid,
    runs: list[RunSpec],
    folder: GridFolder,
    out: Path,
    figures: bool = True,
    get_status: HowItIs = read_status,
    by: tuple[str, ...] = (),
    aside: Collection[str] = (),
    records: Records | None = None,
    samples: bool = False,
    accounting: Callable[[list[Attempt]], str] = lambda attempts: "",
) -> Ablation:
    """Write the tables and figures of `runs` to `out`, and return the table.

    `accounting` says in words what Slurm knows that attempts took; empty where it knows nothing.

    Raises:
        ConfigError: the grid's metric is in no result; or, with `samples`, is no mean over the same samples.
    """
    ablation = collect(grid, runs, folder, get_status, by, aside, records)
    if words := accounting([attempt for run in ablation.runs for attempt in run.record.ledger()]):
        ablation = replace(ablation, notes=(*ablation.notes, Note(words)))
    if samples:
        from furnace_hpc.tables.statistics.bootstrap import over_samples

        ablation = replace(ablation, notes=ablation.notes + over_samples(ablation))
    write_atomically(out / "runs.csv", to_runs_csv(ablation))
    write_atomically(out / "table.csv", to_csv(ablation))
    write_atomically(out / "table.md", to_markdown(ablation))
    write_atomically(out / "table.tex", to_latex(ablation))
    write_atomically(out / "report.html", to_html(ablation))
    if figures:
        _write_figures(ablation, out / "figures")
    return ablation


def written_files(out: Path, figures: bool = True) -> list[Path]:
    """The files that `aggregate` has written."""
    drawn = sorted((out / "figures").glob("*.svg")) + sorted((out / "figures").glob("*.png"))
    return [out / name for name in TABLES] + (drawn if figures else [])


def submitted_grid(name_or_path: str, root: Path) -> tuple[Grid, GridFolder]:
    """The grid as last submitted below `root`, settings laid in; else the grid file itself.

    Raises:
        ConfigError: there is neither, or the file has problems.
    """
    folder = GridFolder(root / grid_name(name_or_path))
    return (read_grid(folder.grid) if folder.grid.exists() else load_grid(name_or_path)), folder


def submitted_runs(
    grid: Grid, folder: GridFolder, records: Records | None = None, asked_as: str = ""
) -> list[RunSpec]:
    """The grid's runs on the data that was last submitted; data that never was gives runs that are missing.

    `asked_as`: the name or path that the user gave; its name where that is empty.

    Raises:
        ConfigError: no run was ever submitted, or the grid has problems.
    """
    data = list(_submitted_data(folder, read_records(folder) if records is None else records))
    if not data:
        root = folder.path.parent
        raise ConfigError(
            f"grid {grid.name!r} has no runs under {root}. {submit_first(asked_as or grid.name, root)}"
        )
    rows = expand_rows(grid)
    fingerprints = {name: "never submitted" for row in rows for name in row.packs}
    return expand(grid, fingerprints | dict(data), rows)


def _submitted_data(folder: GridFolder, records: Records) -> Iterator[tuple[str, str]]:
    """(data set, fingerprint) of every run that there is, and then of every submission, the newest last."""
    for record in records.by_run.values():
        if record.data is not None and record.fingerprint is not None:
            yield record.data, record.fingerprint
    for submission in folder.all_submissions():
        file = submission / "rows.jsonl"
        for line in read_regular_text(file).splitlines() if file.exists() else ():
            name, fingerprint = json.loads(line)["data"]
            yield name, fingerprint


def _write_figures(ablation: Ablation, folder: Path) -> None:
    """Write all figures, and take those away that are of earlier runs alone."""
    from furnace_hpc.tables.output.figures import FORMS, NAMES, draw_figures

    contents = draw_figures(ablation)
    folder.mkdir(parents=True, exist_ok=True)
    for name in {f"{name}.{form}" for name in NAMES for form in FORMS} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        _write_bytes(folder / name, content)


def _write_bytes(path: Path, content: bytes) -> None:
    """As write_atomically, for what is no text."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
