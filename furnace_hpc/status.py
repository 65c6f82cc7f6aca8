"""How a grid's runs are: `python -m furnace_hpc.status --grid NAME [--watch] [--logs RUN] [--json]`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.cluster.evidence import FRESH_S
from furnace_hpc.cluster.logs import print_logs
from furnace_hpc.cluster.overview import Line, overview, render
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState
from furnace_hpc.spec.files import runs_root

MOVING = (RunState.QUEUED, RunState.RUNNING)


def main(
    grid: Annotated[str, typer.Option(help="name of a submitted grid")],
    watch_: Annotated[bool, typer.Option("--watch", help="go on until all runs have ended; Ctrl-C leaves")] = False,
    logs: Annotated[str, typer.Option(help="print the logs of this run (the beginning of its name is enough)")] = "",
    lines: Annotated[int, typer.Option(min=1, help="with --logs: last lines of each log")] = 40,
    json_: Annotated[bool, typer.Option("--json", help="a JSON list, an object a run")] = False,
    runs_dir: Annotated[
        Path | None, typer.Option("--runs-root", help="where runs lie [$FURNACE_RUNS or ./runs]")
    ] = None,
) -> None:
    """A line per run: state, step, loss, speed, time left, and why it is so.

    It comes from the runs' own files, and from one squeue (and at most one sacct) for the whole grid; commands given
    within ten seconds share that answer.
    """
    folder = GridFolder(runs_root(runs_dir) / grid)
    folder.check_submitted()
    if logs:
        print_logs(folder, logs, lines)
    elif json_:
        rows, _ = overview(folder)
        print(json.dumps([row.as_json() for row in rows], indent=2))
    elif watch_:
        try:
            watch(folder)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    else:
        _show(folder)


def watch(folder: GridFolder) -> None:
    """Show the runs again and again until none is running or waiting."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    last = ""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            rows, evidence = overview(folder)
            table, summary = render(rows, evidence, height=console.height - 4)
            if console.is_terminal:
                live.update(Group(table, Text(summary)), refresh=True)
            elif summary != last:
                print(summary, flush=True)  # a log file gets a line when something has changed
            last = summary
            if not any(row.status.state in MOVING or _nobody_knows(row) for row in rows):
                break
            time.sleep(FRESH_S)
    _show(folder)


def _nobody_knows(row: Line) -> bool:
    return row.status.state is RunState.UNKNOWN and bool(row.status.job_id)


def _show(folder: GridFolder) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # a log file has no width: nothing is cropped or wrapped
    table, summary = render(*overview(folder))
    console.print(table)
    console.print(summary)


if __name__ == "__main__":
    run_command(main)
