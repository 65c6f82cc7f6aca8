"""Turn finished runs into tables and figures: `python -m furnace_hpc.aggregate --grid NAME_OR_PATH`."""

import gc
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.grids.grid import Grid, results_name, with_settings
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.runs.folder import GridFolder

if TYPE_CHECKING:
    from furnace_hpc.tables.table import Ablation
    from furnace_hpc.tables.view import View


def main(
    grid: Annotated[str, typer.Option(help="name or path; it is read as it was last submitted")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as given to submit; repeatable")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results [results/<grid>]")] = None,
    runs_dir: Annotated[
        Path | None, typer.Option("--runs-root", help="where runs lie [$FURNACE_RUNS or ./runs]")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="another metric than the grid's: <split>/<task>/<metric>")
    ] = None,
    direction: Annotated[
        Literal["max", "min"] | None,
        typer.Option(help="max or min: which way it is better [the grid's; min for a loss]"),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="rows by the values of this key, such as loss.alpha; repeatable"),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value: only runs that have it; some of the reference must be among them; repeatable"
        ),
    ] = None,
    figures: Annotated[bool, typer.Option(help="draw the figures")] = True,
    samples: Annotated[
        bool,
        typer.Option(
            "--samples", help="test accuracies over samples too, from the runs' predictions"
        ),
    ] = False,
) -> None:
    """Turn a grid's finished runs into runs.csv, table.csv, table.md, table.tex, report.html and figures.

    The exit code is 1 when runs are missing; the table shows them as missing.
    """
    # there are no cycles worth finding, and of thousands of runs a fifth of the time is the search
    gc.disable()
    from furnace_hpc.tables.output.results import submitted_grid
    from furnace_hpc.tables.view import View

    view = View(metric, direction, tuple(by or ()), tuple(where or ()))
    asked, folder = submitted_grid(grid, runs_root(runs_dir))
    raise typer.Exit(
        show_table(with_settings(asked, set_ or []), folder, out, figures, view, samples, grid)
    )


def show_table(
    grid: Grid,
    folder: GridFolder,
    out: Path | None = None,
    figures: bool = True,
    view: "View | None" = None,
    samples: bool = False,
    asked_as: str = "",
) -> int:
    """Write the results of a submitted grid, print the table, and return the exit code.

    `asked_as`: the name or path of the grid as the user gave it.

    Raises:
        ConfigError: the grid has no runs, its metric is in no result, or the view asks for what no run has.
    """
    from rich.console import Console

    from furnace_hpc.config.train_config import run_ids
    from furnace_hpc.monitor.run_status import observe_when_asked
    from furnace_hpc.slurm.accounting import in_words
    from furnace_hpc.tables.cache import read_records
    from furnace_hpc.tables.output.latex import lost_letters
    from furnace_hpc.tables.output.render import to_terminal
    from furnace_hpc.tables.output.results import aggregate, submitted_runs, written_files
    from furnace_hpc.tables.output.verdict import last_lines
    from furnace_hpc.tables.view import View, apply_view

    if figures and not find_spec("matplotlib"):
        typer.echo(
            "no figures: matplotlib is not installed: pip install 'furnace-hpc[report]'", err=True
        )
        figures = False
    view = view or View()
    place = out or Path("results") / "--".join(filter(None, [results_name(grid), view.suffix]))
    if grid.settings:
        settings = ", ".join(f"{key}={value}" for key, value in grid.settings.items())
        grid = grid.model_copy(
            update={"description": f"{grid.description} With {settings}.".strip()}
        )
    view = replace(view, by=view.by or grid.by)
    records = read_records(folder)
    everything = submitted_runs(grid, folder, records, asked_as)
    shown, runs = apply_view(grid, everything, view)
    kept = {id(spec) for spec in runs}
    aside = run_ids([spec for spec in everything if id(spec) not in kept])
    get_status = observe_when_asked(folder)
    ablation = aggregate(
        shown, runs, folder, place, figures, get_status, view.by, aside, records, samples, in_words
    )
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 100)  # in a log file too
    console.print(to_terminal(ablation, console.width))
    if lost := lost_letters(ablation):
        typer.echo(
            f"table.tex: pdfLaTeX prints {lost}; XeLaTeX and LuaLaTeX print what the font has",
            err=True,
        )
    if ablation.missing:
        _print_missing(ablation, folder)
    for line in last_lines(ablation, folder, place, len(written_files(place, figures))):
        console.print(printable(line), markup=False)
    return 1 if ablation.missing else 0


def _print_missing(ablation: "Ablation", folder: GridFolder) -> None:
    """On the error output: the missing runs, and where else there are runs."""
    from furnace_hpc.tables.other_settings import other_settings
    from furnace_hpc.tables.output.notes import describe

    lines = [f"{len(ablation.missing)} of {len(ablation.runs)} runs are missing:"]
    lines += [f"  {printable(describe(run))}" for run in ablation.missing]
    if others := other_settings(ablation.grid, folder):
        lines += [
            "runs with other settings (--set) have a table of their own:",
            *(f"  {line}" for line in others),
        ]
    sys.stdout.flush()
    typer.echo("\n".join(lines), err=True)


if __name__ == "__main__":
    run_command(main)
