"""Show one progress bar for each kind of work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Report = Callable[[str, int, int], None]
"""Called with the kind of work, the number done, and the total."""


@dataclass(frozen=True)
class _Bar:
    """A bar and its start. The rate does not count the work of earlier commands."""

    task: Any
    start_s: float
    first: int


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Yield a function that shows a bar on the terminal for each kind of work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    counts = TextColumn("{task.fields[count]}"), TextColumn("{task.fields[rate]}")
    columns = TextColumn("{task.description}"), BarColumn(), *counts
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bars: dict[str, _Bar] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                task = progress.add_task(what, rate="", count="")
                bars[what] = _Bar(task, time.monotonic(), done)
            bar = bars[what]
            rate = count = ""
            if total > 1:
                rate = _rate(done - bar.first, time.monotonic() - bar.start_s)
                count = f"{done:,}/{total:,}"
            elif done:
                count = "done"
            progress.update(bar.task, completed=done, total=total, rate=rate, count=count)

        yield report


def _rate(number: int, elapsed_s: float) -> str:
    """Format items per second, or seconds per item if slow. Empty in the first second."""
    if elapsed_s <= 1 or not number:
        return ""
    per_s = number / elapsed_s
    if per_s < 1:
        return f"{1 / per_s:,.0f} s each"
    return f"{per_s:,.0f}/s"
