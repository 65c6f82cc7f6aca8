"""What a line of the picture says of a run, cell by cell, in words and glyphs that need no colour."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

from rich.text import Text

from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.monitor.grid_status import Line
from furnace_hpc.monitor.loss_curve import loss_curve
from furnace_hpc.runs.state import RunState

BAR, CURVE = 12, 12  # characters
STYLES = {
    RunState.RUNNING: "cyan",
    RunState.FAILED: "bold red",
    RunState.INTERRUPTED: "yellow",
    RunState.UNKNOWN: "magenta",
    RunState.DONE: "green",
    RunState.QUEUED: "blue",
    RunState.NEW: "dim",
}


@dataclass(frozen=True)
class Column:
    """One column; on a narrow terminal the one of the least worth goes first."""

    name: str
    cell: Callable[[Line], Text]
    worth: int = 99
    right: bool = field(default=False, kw_only=True)
    # characters below which it goes; 0: it is never cut
    least: int = field(default=0, kw_only=True)


def bar(done: int, total: int, width: int, style: str = "") -> Text:
    """Heavy as far as it is done, light for the rest."""
    halves = round(2 * width * min(1.0, done / total)) if total else 0
    if 0 < done < total:  # begun is not nothing, and nearly is not done
        halves = min(max(1, halves), 2 * width - 1)
    heavy, half = divmod(halves, 2)
    return Text("━" * heavy + "╾" * half, style).append("─" * (width - heavy - half), "dim")


def sparkline(values: Sequence[float]) -> Text:
    """A block a value, from the lowest to the highest; ! where it is not finite."""
    finite = [value for value in values if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return Text("".join(_block(value, low, high) for value in values))


def _block(value: float, low: float, high: float) -> str:
    if not isfinite(value):
        return "!"
    return "▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low))] if high > low else "▁"


def number(value: float | None) -> str:
    """Four digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:#.4g}"


def duration(seconds: float) -> str:
    """A time span in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min"
        if hours
        else f"{minutes} min {rest:02d} s"
        if minutes
        else f"{rest} s"
    )


def short_names(lines: Sequence[Line]) -> dict[str, str]:
    """Run id -> the same without its hash, where that leaves them all different."""
    names = {line.run_id: line.run_id.rpartition("-")[0] or line.run_id for line in lines}
    return (
        names
        if len({*names.values()}) == len(names)
        else {line.run_id: line.run_id for line in lines}
    )


def _state(line: Line) -> Text:
    return Text(line.status.state.value, STYLES[line.status.state])


def _left(line: Line) -> str:
    return duration(line.left_s) if line.left_s is not None else ""


def _bar(line: Line) -> Text:
    return bar(line.status.step, line.steps, BAR, STYLES[line.status.state])


def _curve(line: Line) -> Text:
    return sparkline(loss_curve(line.folder, line.status.attempt, CURVE))


def _story(line: Line) -> Text:
    """Time left or why it does not run, and how the attempt before ended."""
    before = line.last_end if line.status.state in (RunState.RUNNING, RunState.QUEUED) else ""
    left = f"{_left(line)} left" if line.left_s is not None else ""
    return _in_one_line("; ".join(filter(None, (left, line.status.reason, before))))


def _in_one_line(words: str) -> Text:
    return Text(printable(" ".join(words.split())))


RUN = Column("run", lambda line: Text(line.run_id), least=30)
STATE = Column("state", _state)
STEP = Column("step", lambda line: Text(f"{line.status.step}/{line.steps}"), 90, right=True)
LOSS = Column("loss", lambda line: Text(number(line.loss)), 60, right=True)
RATE = Column("samples/s", lambda line: Text(number(line.samples_per_s)), 40, right=True)
ATTEMPT = Column("attempt", lambda line: Text(str(line.status.attempt or "")), 30, right=True)
PICTURE = (  # on a terminal
    RUN,
    STATE,
    Column("", _bar, 80),
    STEP,
    LOSS,
    Column("", _curve, 50),
    RATE,
    Column("try", ATTEMPT.cell, ATTEMPT.worth, right=True),
    Column("left, or why", _story, 85, least=16),
)
PLAIN = (  # in a file or a pipe
    RUN,
    STATE,
    ATTEMPT,
    STEP,
    LOSS,
    RATE,
    Column("left", lambda line: Text(_left(line)), right=True),
    Column("job", lambda line: Text(line.status.job_id)),
    Column("why", lambda line: _in_one_line(line.status.reason)),
)
