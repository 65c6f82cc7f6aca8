"""Show one progress bar for each kind of work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[str, int, int], None]


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A bar on the screen for each kind of work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    counts = TextColumn("{task.fields[count]}"), TextColumn("{task.fields[rate]}")
    columns = TextColumn("{task.description}"), BarColumn(), *counts
    with Progress(*columns, TimeRemainingColumn()) as bar:
        tasks: dict[str, Any] = {}
        begun: dict[str, tuple[float, int]] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what], begun[what] = (
                    bar.add_task(what, rate="", count=""),
                    (time.monotonic(), done),
                )
            start_s, first = begun[what]
            elapsed_s = time.monotonic() - start_s
            rate = _rate(done - first, elapsed_s) if total > 1 else ""
            count = f"{done:,}/{total:,}" if total > 1 else "done" if done else ""
            bar.update(tasks[what], completed=done, total=total, rate=rate, count=count)

        yield report


def _rate(number: int, elapsed_s: float) -> str:
    """Things a second, or seconds a thing where they are slow; empty until it can be told."""
    if elapsed_s <= 1 or not number:
        return ""
    per_s = number / elapsed_s
    return f"{per_s:,.0f}/s" if per_s >= 1 else f"{1 / per_s:,.0f} s each"
