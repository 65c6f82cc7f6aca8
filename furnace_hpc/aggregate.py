"""Turn finished runs into tables and figures: `furnace aggregate --grid NAME_OR_PATH`.

`furnace aggregate --from FILE` does it with the runs of other tools.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from furnace_hpc.api.grid_table import make_table
from furnace_hpc.cli import run_command, stop_cycle_search
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid, results_name, with_settings
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.config.parsing.plural import is_are
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.console.options import OptionalSubmittedGrid, RunsRoot
from furnace_hpc.runs.folder import GridFolder

if TYPE_CHECKING:
    from rich.console import Console

    from furnace_hpc.tables.foreign import ForeignTable
    from furnace_hpc.tables.table import Ablation
    from furnace_hpc.tables.view import View

MIN_WIDTH = 100  # characters of the printed table, also in a log file

Metrics = Annotated[
    list[str] | None,
    typer.Option(
        help="another metric than the grid's: <split>/<task>/<metric>; --from: its column; "
        "repeatable: the first one decides verdicts, the others are further columns"
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(help="make a row for each value of this key, such as loss.alpha; repeatable"),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(help="key=value: show only these runs; some must be of the reference; repeatable"),
]
Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        help="instead of a grid: a file or folder with runs of another tool (CSV, JSON Lines, "
        "Parquet, exports of TensorBoard, W&B and MLflow); repeatable",
    ),
]
RowColumn = Annotated[
    str | None, typer.Option("--row", help="--from: column with the row of a run [variant]")
]
SeedColumn = Annotated[
    str | None, typer.Option("--seed", help="--from: column with the seed of a run [seed]")
]
PackColumn = Annotated[
    str | None,
    typer.Option("--pack", help="--from: column with the draw of the data, of one data set"),
]
DataSetColumn = Annotated[
    str | None, typer.Option("--data-set", help="--from: column with the data set of a run")
]
ValueColumn = Annotated[
    str | None,
    typer.Option(
        "--value",
        help="--from: column with the values, if each line has one metric, named in the column "
        "`metric`",
    ),
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="--from: the row that the others are compared with [base]"),
]


def main(
    grid: OptionalSubmittedGrid = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as given to submit; repeatable")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results [results/<grid>]")
    ] = None,
    runs_dir: RunsRoot = None,
    metric: Metrics = None,
    direction: Annotated[
        Literal["max", "min"] | None,
        typer.Option(help="whether higher (max) or lower (min) is better [from the metric]"),
    ] = None,
    by: Keys = None,
    where: Conditions = None,
    figures: Annotated[bool, typer.Option(help="draw the figures")] = True,
    samples: Annotated[
        bool,
        typer.Option(
            "--samples",
            help="also compare accuracies over test samples, from the runs' predictions",
        ),
    ] = False,
    from_: Files = None,
    row: RowColumn = None,
    seed: SeedColumn = None,
    pack: PackColumn = None,
    data_set: DataSetColumn = None,
    value: ValueColumn = None,
    reference: Reference = None,
) -> None:
    """Turn finished runs, of a grid or of another tool, into tables, a report and figures.

    It writes runs.csv, table.csv, table.md, table.tex, report.html and figures/. The exit code is 1
    if runs are missing. The table of a grid has no verdicts with --by, --where, or another --metric
    or --direction than the grid's.
    """
    stop_cycle_search()
    from furnace_hpc.tables.reading.submitted import submitted_grid
    from furnace_hpc.tables.view import View, metrics_of

    columns = {"row": row, "seed": seed, "pack": pack, "data_set": data_set, "value": value}
    if from_:
        of_grids = {"grid": grid, "set": set_, "by": by, "where": where, "samples": samples}
        _refuse(of_grids | {"runs-root": runs_dir}, "is not possible with --from. Remove it")
        wanted = _foreign_table(from_, columns, metric or [], reference, direction)
        raise typer.Exit(show_foreign(wanted, out, figures))
    _refuse(columns | {"reference": reference}, "needs --from. Give the file, or remove it")
    if grid is None:
        raise ConfigError("no runs given. Give --grid NAME, or --from FILE for another tool's runs")
    first, more_metrics = metrics_of(metric)
    view = View(first, direction, tuple(by or ()), tuple(where or ()), more_metrics)
    submitted, folder = submitted_grid(grid, runs_root(runs_dir))
    submitted = with_settings(submitted, set_ or [])
    raise typer.Exit(show_table(submitted, folder, out, figures, view, samples, grid))


def show_table(
    grid: Grid,
    folder: GridFolder,
    out: Path | None = None,
    figures: bool = True,
    view: "View | None" = None,
    samples: bool = False,
    given_name: str = "",
) -> int:
    """Write the results of a submitted grid, print the table, and return the exit code.

    Args:
        grid: the grid with its settings.
        folder: folder of the grid's runs.
        out: folder for the results. If None, a folder in `results/`.
        figures: whether to draw the figures.
        view: another way to show the runs.
        samples: whether to compare accuracies over test samples too.
        given_name: name or path of the grid in the user's command, for errors.

    Raises:
        ConfigError: the grid has no runs, no result has its metric, or no run has a key of the
            view.
    """
    from furnace_hpc.tables.output.results import write_results
    from furnace_hpc.tables.view import View

    view = view or View()
    if out is None:
        out = Path("results") / "--".join(filter(None, [results_name(grid), view.suffix]))
    figures = figures and _can_draw()
    ablation = make_table(grid, folder, view, samples, given_name)
    files = write_results(ablation, out, figures)
    _print(ablation, folder, out, len(files))
    return int(bool(ablation.missing))


def show_foreign(wanted: "ForeignTable", out: Path | None = None, figures: bool = True) -> int:
    """Write the results of another tool's runs, print the table, and return the exit code.

    Args:
        wanted: files and columns.
        out: folder for the results. If None, a folder in `results/`.
        figures: whether to draw the figures.

    Raises:
        ConfigError: the files or the options have a problem, or the folder in `results/` has the
            table of other files.
    """
    from furnace_hpc.tables.foreign import check_same_input, collect_foreign
    from furnace_hpc.tables.output.results import write_results
    from furnace_hpc.tables.output.verdict import verdict

    if out is None:
        out = Path("results") / wanted.name
        check_same_input(out, wanted)
    ablation = collect_foreign(wanted)
    files = write_results(ablation, out, figures and _can_draw())
    _print_table(ablation)
    if ablation.missing:
        _print_missing(ablation, None)
    typer.echo(printable(f"verdict: {verdict(ablation)}"))
    typer.echo(printable(f"wrote {len(files)} files to {out}; open {out / 'report.html'}"))
    return int(bool(ablation.missing))


def _foreign_table(
    paths: list[Path],
    columns: "dict[str, str | None]",
    metrics: list[str],
    reference: str | None,
    direction: Literal["max", "min"] | None,
) -> "ForeignTable":
    from furnace_hpc.tables.foreign import ForeignTable
    from furnace_hpc.tables.reading.foreign.columns import Query

    if not metrics:
        raise ConfigError("--from needs --metric. Name the column with the values to compare")
    query = Query(metrics[0], **columns)
    return ForeignTable(tuple(paths), query, reference, direction, tuple(metrics[1:]))


def _refuse(options: dict[str, Any], problem: str) -> None:
    for name, given in options.items():
        if given:
            raise ConfigError(f"--{name.replace('_', '-')} {problem}")


def _can_draw() -> bool:
    if find_spec("matplotlib"):
        return True
    typer.echo(
        "no figures: matplotlib is not installed. Run pip install 'furnace-hpc[report]'", err=True
    )
    return False


def _print(ablation: "Ablation", folder: GridFolder, out: Path, num_files: int) -> None:
    """Print the table, what it lacks, and the last lines."""
    from furnace_hpc.tables.output.verdict import last_lines

    console = _print_table(ablation)
    if ablation.missing:
        _print_missing(ablation, folder)
    for line in last_lines(ablation, folder, out, num_files):
        console.print(printable(line), markup=False)


def _print_table(ablation: "Ablation") -> "Console":
    """Print the table with its caption and notes. Return the console."""
    from rich.console import Console

    from furnace_hpc.tables.output.latex import lost_letters
    from furnace_hpc.tables.output.render import to_terminal

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, MIN_WIDTH)
    console.print(to_terminal(ablation, console.width))
    if lost := lost_letters(ablation):
        typer.echo(
            f"table.tex: pdfLaTeX prints {lost}. XeLaTeX and LuaLaTeX print all that the font has",
            err=True,
        )
    return console


def _print_missing(ablation: "Ablation", folder: GridFolder | None) -> None:
    """Print the missing runs to stderr, and the commands for tables with other settings."""
    from furnace_hpc.tables.notes import describe
    from furnace_hpc.tables.other_settings import other_settings

    missing = len(ablation.missing)
    lines = [f"{missing} of {len(ablation.runs)} runs {is_are(missing)} missing:"]
    lines += [f"  {printable(describe(run))}" for run in ablation.missing]
    if folder and (others := other_settings(ablation.grid, folder)):
        lines.append("runs with other settings (--set) have a table of their own:")
        lines += [f"  {line}" for line in others]
    sys.stdout.flush()
    typer.echo("\n".join(lines), err=True)


if __name__ == "__main__":
    run_command(main)
