"""Show the report of a grid in the browser: `furnace open --grid G`."""

from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.api.report import find_report
from furnace_hpc.cli import run_command
from furnace_hpc.config.grids.grid import with_settings
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.console import browser
from furnace_hpc.console.options import RunsRoot, SubmittedGrid
from furnace_hpc.monitor.columns import duration
from furnace_hpc.runs.submitted import find_submitted, grid_command, set_options
from furnace_hpc.tables.reading.submitted import submitted_grid


def main(
    grid: SubmittedGrid,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as given to submit; repeatable")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results [results/<grid>]")] = None,
    runs_dir: RunsRoot = None,
) -> None:
    """Open the report of a grid in the browser.

    If the report is missing, it is made as `furnace aggregate` makes it. A note is printed if it is
    older than the runs. Over ssh or without a display, the command prints how to copy it.
    """
    root = runs_root(runs_dir)
    find_submitted(grid, root)  # its error names similar grids
    submitted, folder = submitted_grid(grid, root)
    submitted = with_settings(submitted, set_ or [])
    report = find_report(submitted, folder, out, grid)
    if report.num_made:
        print(f"wrote {report.num_made} files to {report.path.parent}")
    if report.behind_s >= 1:
        again = grid_command("aggregate", folder, *set_options(submitted.settings))
        print(f"the report is {duration(report.behind_s)} older than its runs. Renew it: {again}")
    if browser.can_open() and browser.open_file(report.path):
        print(f"opened {report.path}")
        return
    print(f"report: {report.path.resolve()}")
    print("There is no browser here. Copy the report, with this command on your own machine:")
    print(f"  {browser.copy_command(report.path, f'{folder.path.name}.html')}")


if __name__ == "__main__":
    run_command(main)
