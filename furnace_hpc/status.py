"""Show the runs of a grid: `furnace status --grid NAME [--watch] [--logs RUN] [--json]`."""

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from furnace_hpc.cli import run_command, stop_cycle_search
from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.console.options import RunsRoot, SubmittedGrid
from furnace_hpc.monitor.following.runs import follow, has_ended, next_read_s
from furnace_hpc.monitor.forecast.progress import lines_below
from furnace_hpc.monitor.grid_status import StatusLine, overview
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.local_queue import live_queue
from furnace_hpc.monitor.logs import print_logs
from furnace_hpc.monitor.queue_place import with_places
from furnace_hpc.monitor.render import picture, plain, summary
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.notices.outbox import send_missing
from furnace_hpc.runs.submitted import find_submitted

if TYPE_CHECKING:
    from rich.console import Console

RESIZE_S = 0.25  # how soon a terminal is redrawn after its size changed


def main(
    grid: SubmittedGrid,
    watch_: Annotated[
        bool, typer.Option("--watch", help="refresh until all runs have ended; Ctrl-C stops it")
    ] = False,
    logs: Annotated[
        str, typer.Option(help="print the logs of this run (the beginning of its name is enough)")
    ] = "",
    lines: Annotated[int, typer.Option(min=1, help="with --logs: last lines of each log")] = 40,
    queue: Annotated[
        bool,
        typer.Option(
            "--queue", help="also show the place of waiting runs in the queue (one squeue)"
        ),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="print a JSON list with one object per run")
    ] = False,
    runs_dir: RunsRoot = None,
) -> None:
    """Show one line per run: state, step, loss, speed, time left, and why it is in that state.

    The data comes from the runs' files, and from one squeue and at most one sacct for the whole
    grid. Commands within ten seconds share that answer. Slurm is not queried if all runs are done,
    or none was submitted to it. A waiting run shows why it waits, and when Slurm expects it to
    start. On a terminal the lines fit its width. In a file or a pipe they are complete.
    """
    if not watch_:
        stop_cycle_search()
    folder = find_submitted(grid, runs_root(runs_dir))
    if queue and watch_:
        raise ConfigError(
            "--queue cannot be combined with --watch, which updates all the time. Omit one"
        )
    if logs:
        print_logs(folder, logs, lines)
    elif json_:
        print(json.dumps([row.as_json() for row in _overview(folder, queue)[0]], indent=2))
    elif watch_:
        # as Ctrl-C, so that the terminal is restored
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            watch(folder)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    else:
        _show(folder, *_overview(folder, queue))
    if not (logs or json_):
        for line in send_missing(folder):
            print(line, file=sys.stderr)


def _overview(folder: GridFolder, with_queue: bool) -> tuple[list[StatusLine], JobCache]:
    """List the runs, with the place of waiting ones in the queue if that is wanted."""
    lines, job_cache = overview(folder)
    if with_queue:
        try:
            lines = with_places(lines, job_cache)
        except UnavailableError as error:
            print(f"no places in the queue: {error}", file=sys.stderr)
    return lines, job_cache


def watch(folder: GridFolder) -> None:
    """Show the runs until none is running or queued. The last view stays on the screen."""
    if not _on_terminal():
        _show(folder, *_follow(folder))
        return
    from rich.console import Group
    from rich.live import Live

    console = _console()
    started_s, (queue, rows, job_cache) = time.monotonic(), _read(folder)
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                size = console.size
                below = lines_below(folder, rows)
                shown = picture(rows, job_cache, size.width, size.height - len(below))
                live.update(Group(*shown, *below), refresh=True)
                if not queue and has_ended(folder, rows, job_cache):
                    break
                next_s = next_read_s(started_s)
                while time.monotonic() < next_s and console.size == size:
                    time.sleep(RESIZE_S)
                if time.monotonic() >= next_s:
                    started_s, (queue, rows, job_cache) = time.monotonic(), _read(folder)
    finally:
        _show(folder, rows, job_cache, console.height - 1)  # one line for the prompt


def _read(folder: GridFolder) -> tuple[str, list[StatusLine], JobCache]:
    """Read the queue on this machine first, so that the runs after its end are final."""
    return live_queue(folder), *overview(folder)


def _follow(folder: GridFolder) -> tuple[list[StatusLine], JobCache]:
    """Print a summary line whenever it has changed, for log files. Returns the last rows."""
    last = ""
    for rows, job_cache in follow(folder):
        text = summary(rows, job_cache)
        if text != last:
            print(text, flush=True)
        last = text
    return rows, job_cache


def _show(
    folder: GridFolder, rows: list[StatusLine], job_cache: JobCache, height: int = 10**6
) -> None:
    below = lines_below(folder, rows)
    if not _on_terminal():
        print("\n".join([*plain(rows, job_cache), *below]))
        return
    console = _console()
    for text in (*picture(rows, job_cache, console.width, height - len(below)), *below):
        console.print(text)


def _on_terminal() -> bool:
    """Whether stdout is a terminal that can draw the glyphs."""
    has_glyphs = (sys.stdout.encoding or "").lower().startswith("utf")
    is_dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown")
    return sys.stdout.isatty() and has_glyphs and not is_dumb


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


if __name__ == "__main__":
    run_command(main)
