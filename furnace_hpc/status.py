"""How a grid's runs are: `python -m furnace_hpc.status --grid NAME [--watch] [--logs RUN] [--json]`."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.monitor.grid_status import Line, overview
from furnace_hpc.monitor.job_cache import Evidence
from furnace_hpc.monitor.logs import print_logs
from furnace_hpc.monitor.render import picture, plain, summary
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState
from furnace_hpc.runs.submitted import find_submitted

if TYPE_CHECKING:
    from rich.console import Console

MOVING = (RunState.QUEUED, RunState.RUNNING)
EVERY_S = 3.0  # between two looks at the files; Slurm is asked less often
MOST_BUSY = 0.05  # share of the time that goes into looking, however many runs there are
SLOWEST_S = 30.0  # of two looks, however slow the file system is
LOOK_S = 0.25  # how soon a terminal of another size is drawn anew


def main(
    grid: Annotated[str, typer.Option(help="name of a submitted grid, or path of its file")],
    watch_: Annotated[
        bool, typer.Option("--watch", help="go on until all runs have ended; Ctrl-C leaves")
    ] = False,
    logs: Annotated[
        str, typer.Option(help="print the logs of this run (the beginning of its name is enough)")
    ] = "",
    lines: Annotated[int, typer.Option(min=1, help="with --logs: last lines of each log")] = 40,
    json_: Annotated[bool, typer.Option("--json", help="a JSON list, an object a run")] = False,
    runs_dir: Annotated[
        Path | None, typer.Option("--runs-root", help="where runs lie [$FURNACE_RUNS or ./runs]")
    ] = None,
) -> None:
    """A line per run: state, step, loss and its curve, speed, time left, and why it is so.

    It comes from the runs' own files, and from one squeue (and at most one sacct) for the whole grid; commands given
    within ten seconds share that answer, and none is asked for where nothing was submitted or all is done. On a
    terminal the lines fit its width; in a file or a pipe they are whole.
    """
    folder = find_submitted(grid, runs_root(runs_dir))
    if logs:
        print_logs(folder, logs, lines)
    elif json_:
        print(json.dumps([row.as_json() for row in overview(folder)[0]], indent=2))
    elif watch_:
        # the terminal is to be left as it was
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            watch(folder)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    else:
        _show(*overview(folder))


def watch(folder: GridFolder) -> None:
    """Show the runs again and again until none is running or waiting; what was seen last stays."""
    if not _on_terminal():
        _show(*_follow(folder))
        return
    from rich.console import Group
    from rich.live import Live

    console = _console()
    begun_s, (rows, evidence) = time.monotonic(), overview(folder)
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(Group(*picture(rows, evidence, *console.size)), refresh=True)
                if not any(map(_moves, rows)):
                    break
                until_s, size = _next_look_s(begun_s), console.size
                while time.monotonic() < until_s and console.size == size:
                    time.sleep(LOOK_S)
                if time.monotonic() >= until_s:
                    begun_s, (rows, evidence) = time.monotonic(), overview(folder)
    finally:
        _show(rows, evidence, console.height - 1)  # the prompt takes one


def _follow(folder: GridFolder) -> tuple[list[Line], Evidence]:
    """A log file gets a line when something has changed."""
    last = ""
    while True:
        begun_s, (rows, evidence) = time.monotonic(), overview(folder)
        if (words := summary(rows, evidence)) != last:
            print(words, flush=True)
        last = words
        if not any(map(_moves, rows)):
            return rows, evidence
        time.sleep(max(0.0, _next_look_s(begun_s) - time.monotonic()))


def _next_look_s(begun_s: float) -> float:
    took_s = time.monotonic() - begun_s
    return begun_s + max(EVERY_S, min(SLOWEST_S, took_s / MOST_BUSY))


def _moves(row: Line) -> bool:
    nobody_knows = row.status.state is RunState.UNKNOWN and bool(row.status.job_id)
    return row.status.state in MOVING or nobody_knows


def _show(rows: list[Line], evidence: Evidence, height: int = 10**6) -> None:
    if not _on_terminal():
        print("\n".join(plain(rows, evidence)))
        return
    console = _console()
    for text in picture(rows, evidence, console.width, height):
        console.print(text)


def _on_terminal() -> bool:
    """Whether somebody looks at a screen that can show it."""
    words = (sys.stdout.encoding or "").lower().startswith("utf")
    return (
        sys.stdout.isatty() and words and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    )


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


if __name__ == "__main__":
    run_command(main)
