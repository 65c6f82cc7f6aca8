"""Wait for the runs of a grid, and show the progress in a notebook or on stderr."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from furnace_hpc.api.grid_status import GridStatus
from furnace_hpc.launch.grids.background import has_queue
from furnace_hpc.monitor.following.runs import follow
from furnace_hpc.runs.folder import GridFolder

MAX_WIDTH = 150  # of the progress on a terminal


def wait_for_runs(folder: GridFolder, progress: bool) -> GridStatus:
    """Wait until no run can change without a command, and return the last status.

    Args:
        folder: a submitted grid.
        progress: whether to show the status while it changes.
    """
    show = _progress() if progress else _nothing
    try:
        for lines, job_cache in follow(folder, lambda: has_queue(folder)):
            status = GridStatus(folder, tuple(lines), job_cache)
            show(status)
    finally:
        show(None)
    return status


def _nothing(_: GridStatus | None) -> None:
    """Show no progress."""


def _progress() -> Callable[[GridStatus | None], None]:
    """Return a function that shows a status, and gets None at the end."""
    display = _notebook_display()
    if display is not None:
        return _in_notebook(display)
    if sys.stderr.isatty():
        return _in_place
    return _in_lines()


def _notebook_display() -> Any:
    """Return IPython's `display`. None outside of a notebook. IPython is not imported for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return import_module("IPython.display").display


def _in_notebook(display: Any) -> Callable[[GridStatus | None], None]:
    """Update one table in the output of the cell."""
    handle: Any = None

    def show(status: GridStatus | None) -> None:
        nonlocal handle
        if status is None:
            return
        if handle is None:
            handle = display(status, display_id=True)
        else:
            handle.update(status)

    return show


def _in_place(status: GridStatus | None) -> None:
    """Write one line over the one before, on a terminal."""
    if status is None:
        print(file=sys.stderr)
    else:
        print(f"\r\x1b[K{status.summary[:MAX_WIDTH]}", end="", file=sys.stderr, flush=True)


def _in_lines() -> Callable[[GridStatus | None], None]:
    """Write a line whenever it has changed, as in a log file."""
    last = ""

    def show(status: GridStatus | None) -> None:
        nonlocal last
        if status is not None and status.summary != last:
            last = status.summary
            print(last, file=sys.stderr, flush=True)

    return show
