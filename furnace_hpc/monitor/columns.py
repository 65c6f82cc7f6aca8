"""Format the cells of a status line. Text and glyphs are enough without colour."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

from rich.text import Text

from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.monitor.grid_status import StatusLine
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
class StatusColumn:
    """One column. On a narrow terminal the column of the lowest priority is left out first."""

    name: str
    cell: Callable[[StatusLine], Text | str]
    priority: int = 99
    right: bool = field(default=False, kw_only=True)  # aligned to the right
    # A column that would be narrower is left out. At 0 it is never cut.
    min_width: int = field(default=0, kw_only=True)
    if_known: bool = field(default=False, kw_only=True)  # left out everywhere if it is empty


def bar(done: int, total: int, width: int, style: str = "") -> Text:
    """Draw a progress bar: heavy for the steps that are done, light for the rest."""
    halves = 0
    if total:
        halves = round(2 * width * min(1.0, done / total))
    if 0 < done < total:  # only nothing is drawn as 0, and only all as 1
        halves = min(max(1, halves), 2 * width - 1)
    heavy, half = divmod(halves, 2)
    return Text("━" * heavy + "╾" * half, style).append("─" * (width - heavy - half), "dim")


def sparkline(values: Sequence[float]) -> Text:
    """Draw one block per value, as high as the value. A value that is not finite is `!`."""
    finite = [value for value in values if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return Text("".join(_block(value, low, high) for value in values))


def _block(value: float, low: float, high: float) -> str:
    if not isfinite(value):
        return "!"
    if high == low:
        return "▁"
    return "▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low))]


def number(value: float | None) -> str:
    """Format a number with four significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:#.4g}"


def duration(seconds: float) -> str:
    """Format a time span: `2 h 05 min`, `3 min 20 s` or `5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{rest} s"


def short_names(lines: Sequence[StatusLine]) -> dict[str, str]:
    """Map run ids to names without the hash, or to themselves if two names would be equal."""
    names = {line.run_id: line.run_id.rpartition("-")[0] or line.run_id for line in lines}
    if len({*names.values()}) < len(names):
        return {run_id: run_id for run_id in names}
    return names


def _state(line: StatusLine) -> Text:
    return Text(line.status.state.value, STYLES[line.status.state])


def _epoch(line: StatusLine) -> str:
    """Epochs that are done, of all. Empty if the length of the run is given in steps."""
    if line.epochs is None or not line.steps:
        return ""
    return f"{line.epochs * line.status.step / line.steps:.3g}/{line.epochs:.4g}"


def _left(line: StatusLine) -> str:
    return "" if line.left_s is None else duration(line.left_s)


def _bar(line: StatusLine) -> Text:
    return bar(line.status.step, line.steps, BAR, STYLES[line.status.state])


def _curve(line: StatusLine) -> Text:
    return sparkline(loss_curve(line.folder, line.status.attempt, CURVE))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _tflop_s(line: StatusLine) -> str:
    """Model TFLOP/s of a process, where there is no MFU."""
    if line.model_tflop_s is None or line.mfu is not None:
        return ""
    return f"{line.model_tflop_s:.3g}"


def _left_or_reason(line: StatusLine) -> str:
    """Join the time left, the reason of the state, and how the attempt before ended."""
    parts = [line.status.reason]
    if line.left_s is not None:
        parts.insert(0, f"{_left(line)} left")
    if line.status.state in (RunState.RUNNING, RunState.QUEUED):
        parts.append(line.last_end)
    return _in_one_line("; ".join(filter(None, parts)))


def _in_one_line(text: str) -> str:
    return printable(" ".join(text.split()))


RUN = StatusColumn("run", lambda line: Text(line.run_id), min_width=30)
STATE = StatusColumn("state", _state)
STEP = StatusColumn("step", lambda line: f"{line.status.step}/{line.steps}", 90, right=True)
EPOCH = StatusColumn("epoch", _epoch, 70, right=True, if_known=True)
LOSS = StatusColumn("loss", lambda line: number(line.loss), 60, right=True)
RATE = StatusColumn("samples/s", lambda line: number(line.samples_per_s), 40, right=True)
MFU = StatusColumn("MFU", lambda line: _percent(line.mfu), 35, right=True, if_known=True)
TFLOPS = StatusColumn("TFLOP/s", _tflop_s, 33, right=True, if_known=True)
WAIT = StatusColumn(
    "data wait", lambda line: _percent(line.data_wait), 32, right=True, if_known=True
)
ATTEMPT = StatusColumn("attempt", lambda line: str(line.status.attempt or ""), 30, right=True)
PICTURE = (  # on a terminal
    RUN,
    STATE,
    StatusColumn("", _bar, 80),
    STEP,
    EPOCH,
    LOSS,
    StatusColumn("", _curve, 50),
    RATE,
    MFU,
    TFLOPS,
    WAIT,
    ATTEMPT,
    StatusColumn("left, or reason", _left_or_reason, 85, min_width=16),
)
PLAIN = (  # in a file or a pipe
    RUN,
    StatusColumn("state", lambda line: line.status.state.value),
    ATTEMPT,
    STEP,
    EPOCH,
    LOSS,
    RATE,
    MFU,
    TFLOPS,
    WAIT,
    StatusColumn("left", _left, right=True),
    StatusColumn("job", lambda line: Text(line.status.job_id)),
    StatusColumn("reason", lambda line: _in_one_line(line.status.reason)),
)
