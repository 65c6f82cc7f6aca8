"""Find the runs of a submitted grid, and write the files of its table to `results/<grid>/`."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import GridRow, expand, expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, read_grid
from furnace_hpc.config.grids.trials import expand_chosen, expand_trials
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.durable_files import replace_file
from furnace_hpc.runs.folder import GridFolder, write_atomically
from furnace_hpc.runs.records.choice import read_choices, values_of
from furnace_hpc.runs.submitted import grid_name, how_to_submit, read_rows
from furnace_hpc.tables.output.latex import to_latex
from furnace_hpc.tables.output.render import (
    to_csv,
    to_curve_csv,
    to_effects_csv,
    to_markdown,
    to_ranks_csv,
    to_runs_csv,
    to_tuning_csv,
)
from furnace_hpc.tables.output.report import to_html
from furnace_hpc.tables.reading.cache import Records, read_records
from furnace_hpc.tables.table import SOURCE_FILE, Ablation


def _source_json(ablation: Ablation) -> str:
    """The files behind the table of another tool's runs. Empty for a grid."""
    if ablation.source is None:
        return ""
    return json.dumps({"inputs": ablation.source.inputs}, indent=1) + "\n"


OPTIONAL_WRITERS: dict[str, Callable[[Ablation], str]] = {  # files that a table may lack
    "effects.csv": to_effects_csv,
    "ranks.csv": to_ranks_csv,
    "tuning.csv": to_tuning_csv,
    "tuning_curve.csv": to_curve_csv,
    SOURCE_FILE: _source_json,
}
WRITERS: dict[str, Callable[[Ablation], str]] = {
    "runs.csv": to_runs_csv,
    "table.csv": to_csv,
    "table.md": to_markdown,
    "table.tex": to_latex,
    "report.html": to_html,
}


def write_results(ablation: Ablation, out: Path, figures: bool = True) -> list[Path]:
    """Write the tables and figures to the folder `out`, and return the files."""
    files = []
    writers = WRITERS | {"report.html": partial(to_html, out=out)}
    for name, write in writers.items():
        write_atomically(out / name, write(ablation))
        files.append(out / name)
    for name, write in OPTIONAL_WRITERS.items():
        if text := write(ablation):
            write_atomically(out / name, text)
            files.append(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    if figures:
        files += _write_figures(ablation, out / "figures")
    return files


def submitted_grid(name_or_path: str, root: Path) -> tuple[Grid, GridFolder]:
    """The grid as it was last submitted below `root`, with its settings, or the grid file.

    Raises:
        ConfigError: there is neither, or the file has problems.
    """
    folder = GridFolder(root / grid_name(name_or_path))
    if folder.grid.exists():
        return read_grid(folder.grid), folder
    return load_grid(name_or_path), folder


def submitted_runs(
    grid: Grid, folder: GridFolder, records: Records | None = None, given_name: str = ""
) -> list[RunSpec]:
    """The grid's runs on the data that was last submitted. A row on other data has missing runs.

    Args:
        grid: the grid.
        folder: folder of the grid's runs.
        records: content of the run files, if it was read before.
        given_name: name or path of the grid in the user's command, for the error. If empty, its
            name.

    Raises:
        ConfigError: no run was ever submitted, or the grid has problems.
    """
    rows, fingerprints = submitted_rows(grid, folder, records, given_name)
    if grid.tune is None:
        return expand(grid, fingerprints, rows)
    choices = read_choices(folder, expand_trials(grid, rows, fingerprints))
    return expand_chosen(grid, rows, fingerprints, values_of(choices), all_rows=True)


def submitted_rows(
    grid: Grid, folder: GridFolder, records: Records | None = None, given_name: str = ""
) -> tuple[list[GridRow], dict[str, str]]:
    """The grid's rows, and data set -> fingerprint as last submitted. As `submitted_runs`."""
    if records is None:
        records = read_records(folder)
    fingerprints = dict(_submitted_data(folder, records))
    if not fingerprints:
        root = folder.path.parent
        fix = how_to_submit(given_name or grid.name, root)
        raise ConfigError(f"grid {grid.name!r} has no runs under {root}. {fix}")
    rows = expand_rows(grid)
    unknown = {name: "never submitted" for row in rows for name in row.packs}
    return rows, unknown | fingerprints


def _submitted_data(folder: GridFolder, records: Records) -> Iterator[tuple[str, str]]:
    """(data set, fingerprint) of every run, and then of every submission, the newest last."""
    for record in records.by_run.values():
        if record.data is not None and record.fingerprint is not None:
            yield record.data, record.fingerprint
    for submission in folder.all_submissions():
        for row in read_rows(submission / "rows.jsonl"):
            name, fingerprint = row.data
            yield name, fingerprint


def _write_figures(ablation: Ablation, folder: Path) -> list[Path]:
    """Write all figures. Remove those of an earlier call that the table no longer has."""
    from furnace_hpc.tables.output.figures import FORMS, NAMES, draw_figures

    contents = draw_figures(ablation)
    folder.mkdir(parents=True, exist_ok=True)
    for name in {f"{name}.{form}" for name in NAMES for form in FORMS} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        replace_file(folder / name, content, durable=False)
    return [folder / name for name in contents]
