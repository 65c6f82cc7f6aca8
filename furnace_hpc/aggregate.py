"""Turn finished runs into tables and figures: `python -m furnace_hpc.aggregate --grid NAME_OR_PATH`."""

import gc
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.spec.files import runs_root
from furnace_hpc.spec.grid import Grid, results_name, with_settings

if TYPE_CHECKING:
    from furnace_hpc.tables.view import View


def main(
    grid: Annotated[str, typer.Option(help="name or path; it is read as it was last submitted")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, as given to submit; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results [results/<grid>]")] = None,
    runs_dir: Annotated[
        Path | None, typer.Option("--runs-root", help="where runs lie [$FURNACE_RUNS or ./runs]")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="another metric than the grid's: <split>/<task>/<metric>")] = None,
    direction: Annotated[
        Literal["max", "min"] | None,
        typer.Option(help="max or min: which way it is better [the grid's; min for a loss]"),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="rows by the values of this key, such as loss.alpha; repeatable")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="key=value: only runs that have it, such as variant=full; repeatable")
    ] = None,
    figures: Annotated[bool, typer.Option(help="draw the figures")] = True,
    samples: Annotated[
        bool, typer.Option("--samples", help="test accuracies over samples too, from the runs' predictions")
    ] = False,
) -> None:
    """Turn a grid's finished runs into runs.csv, table.csv, table.md, table.tex, report.html and figures.

    The exit code is 1 when runs are missing; the table shows them as missing.
    """
    gc.disable()  # there are no cycles worth finding, and of thousands of runs a fifth of the time is the search
    from furnace_hpc.tables.results import submitted_grid
    from furnace_hpc.tables.view import View

    view = View(metric, direction, tuple(by or ()), tuple(where or ()))
    asked, folder = submitted_grid(grid, runs_root(runs_dir))
    raise typer.Exit(show_table(with_settings(asked, set_ or []), folder, out, figures, view, samples))


def show_table(
    grid: Grid,
    folder: GridFolder,
    out: Path | None = None,
    figures: bool = True,
    view: "View | None" = None,
    samples: bool = False,
) -> int:
    """Write the results of a submitted grid, print the table, and return the exit code.

    Raises:
        ConfigError: the grid has no runs, its metric is in no result, or the view asks for what no run has.
    """
    from rich.console import Console

    from furnace_hpc.cluster.accounted import in_words
    from furnace_hpc.cluster.observe import observe_when_asked
    from furnace_hpc.spec.config import run_ids
    from furnace_hpc.spec.printable import printable
    from furnace_hpc.tables.cache import read_records
    from furnace_hpc.tables.latex import lost_letters
    from furnace_hpc.tables.notes import describe
    from furnace_hpc.tables.render import to_terminal
    from furnace_hpc.tables.results import aggregate, submitted_runs, written_files
    from furnace_hpc.tables.view import View, look

    if figures and not find_spec("matplotlib"):
        typer.echo("no figures: matplotlib is not installed: pip install 'furnace-hpc[report]'", err=True)
        figures = False
    view = view or View()
    place = out or Path("results") / "--".join(filter(None, [results_name(grid), view.suffix]))
    if grid.settings:
        settings = ", ".join(f"{key}={value}" for key, value in grid.settings.items())
        grid = grid.model_copy(update={"description": f"{grid.description} With {settings}.".strip()})
    view = replace(view, by=view.by or grid.by)
    records = read_records(folder)
    everything = submitted_runs(grid, folder, records)
    shown, runs = look(grid, everything, view)
    kept = {id(spec) for spec in runs}
    aside = run_ids([spec for spec in everything if id(spec) not in kept])
    how_it_is = observe_when_asked(folder)
    ablation = aggregate(shown, runs, folder, place, figures, how_it_is, view.by, aside, records, samples, in_words)
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 100)  # in a log file too
    console.print(to_terminal(ablation))
    if lost := lost_letters(ablation):
        typer.echo(f"table.tex: pdfLaTeX prints {lost}; XeLaTeX and LuaLaTeX print what the font has", err=True)
    for path in written_files(place, figures):
        console.print(printable(str(path)), markup=False)
    if not ablation.missing:
        return 0
    typer.echo(f"{len(ablation.missing)} of {len(ablation.runs)} runs are missing:", err=True)
    for run in ablation.missing:
        typer.echo(f"  {printable(describe(run))}", err=True)
    return 1


if __name__ == "__main__":
    run_command(main)
