"""The forecast of a submission, in its `forecast.json`, and how it compares with what happens."""

import heapq
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.monitor.forecast.spread import Spread
from furnace_hpc.runs.file_cache import cached_by_stat

FORECAST = "forecast.json"  # in the folder of a submission
HOUR_S = 3600.0


class RunForecast(BaseModel):
    """The seconds that one run is expected to take, from the step that it had."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seconds: tuple[float, float, float]  # low, middle, high: of all its attempts
    step: int = 0
    nodes: float = 1  # its share of a node that it shares
    gpus: int | float = 0  # below 1: its part of a GPU that it shares
    group: int = 0  # runs of a group wait for each other

    @property
    def spread(self) -> Spread:
        """Its seconds."""
        return Spread(*self.seconds)


class Forecast(BaseModel):
    """The expected cost and end of the runs of a submission, if every job starts at once."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    made_unix_s: float
    runs: dict[str, RunForecast]
    parallel: tuple[int, ...] = (1,)  # runs of each group at a time
    num_unknown: int = 0  # runs to start of kinds that no run has measured
    measured_runs: int = 0

    def total(self, per: str = "") -> Spread:
        """Seconds of all runs. With `gpus` or `nodes`: times the number that each run has."""
        spreads = [run.spread * (getattr(run, per) if per else 1) for run in self.runs.values()]
        return sum(spreads, Spread())

    @property
    def elapsed(self) -> Spread:
        """Seconds until the last run ends."""
        ends = []
        for place in range(3):
            seconds = {name: run.seconds[place] for name, run in self.runs.items()}
            ends.append(self.end_of(seconds))
        return Spread(*ends)

    def end_of(self, seconds: dict[str, float]) -> float:
        """Seconds until the last of these runs ends, in their order, as many at a time as fit."""
        ends = [0.0]
        for group, parallel in enumerate(self.parallel):
            durations = [left for name, left in seconds.items() if self.runs[name].group == group]
            ends.append(last_end(durations, parallel))
        return max(ends)

    def describe(self) -> str:
        """`12.3 GPU-hours (10.9 to 14.6), 3.1 node-hours (...), earliest end in 3.2 h (...)`."""
        parts = []
        if any(run.gpus for run in self.runs.values()):
            parts.append(f"{_hours(self.total('gpus'), 'GPU-hours')}")
        parts.append(_hours(self.total("nodes"), "node-hours"))
        parts.append(f"earliest end in {_time(self.elapsed)}")
        text = f"{', '.join(parts)}, from {counted(self.measured_runs, 'measured run')}"
        if self.num_unknown:
            text += (
                f"; {counted(self.num_unknown, 'run')} of kinds without a measured run not included"
            )
        return text


def last_end(durations: Iterable[float], parallel: int) -> float:
    """When the last of these ends, if each starts as soon as one of `parallel` places is free."""
    free = [0.0] * max(1, parallel)
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _hours(spread: Spread, unit: str) -> str:
    low, mid, high = (_digits(value / HOUR_S) for value in (spread.low, spread.mid, spread.high))
    return f"{mid} {unit} ({low} to {high})"


def _time(spread: Spread) -> str:
    """`3.2 h (2.6 to 4.1)`, or in minutes."""
    unit, divisor = ("h", HOUR_S) if spread.mid >= HOUR_S else ("min", 60.0)
    low, mid, high = (_digits(value / divisor) for value in (spread.low, spread.mid, spread.high))
    return f"{mid} {unit} ({low} to {high})"


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def compared(forecast: Forecast, now: Sequence["RunNow"], now_unix_s: float | None = None) -> str:
    """`3.2 h (2.6 to 4.1) until the last run ends, now expected 3.4 h`, and the same of GPU-hours.

    Args:
        forecast: as it was made.
        now: the runs of the forecast.
        now_unix_s: the time. None: now.
    """
    since_s = (now_unix_s or time.time()) - forecast.made_unix_s
    known = [run for run in now if run.run_id in forecast.runs]
    ratio = _ratio(forecast, known)
    left = {run.run_id: _left_s(forecast.runs[run.run_id], run, ratio) for run in known}
    began = {run.run_id: left[run.run_id] for run in known if run.spent_s and not run.has_ended}
    waiting = {name: seconds for name, seconds in left.items() if name not in began}
    still_s = forecast.end_of(began | waiting)
    whole = forecast.elapsed
    is_over = all(run.has_ended for run in known)
    total_s = since_s + still_s
    if is_over:
        total_s = max((run.end_unix_s for run in known), default=0.0) - forecast.made_unix_s
    unit, divisor = ("h", HOUR_S) if whole.mid >= HOUR_S else ("min", 60.0)
    verb = "it took" if is_over else "now expected"
    text = f"{_time(whole)} until the last run ends, {verb} {_digits(total_s / divisor)} {unit}"
    planned = forecast.total("gpus")
    if planned.mid:
        gpu_s = sum(
            (run.spent_s + left[run.run_id]) * forecast.runs[run.run_id].gpus for run in known
        )
        verb = "used" if is_over else "now expected"
        text += f"; {_hours(planned, 'GPU-hours')}, {verb} {_digits(gpu_s / HOUR_S)}"
    return text


class RunNow(BaseModel):
    """What a run of a forecast has done since the forecast was made."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    spent_s: float = 0.0  # of its attempts since then
    step: int = 0
    steps: int = 1
    has_ended: bool = False  # it is done, or has failed
    is_done: bool = False
    end_unix_s: float = 0.0


def _ratio(forecast: Forecast, runs: Sequence[RunNow]) -> float:
    """Seconds of the runs that are done, divided by those of their forecast. 1 if none is done."""
    done = [run for run in runs if run.is_done]
    expected = sum(forecast.runs[run.run_id].seconds[1] for run in done)
    if not expected:
        return 1.0
    return sum(run.spent_s for run in done) / expected


def _left_s(forecast: RunForecast, run: RunNow, ratio: float) -> float:
    """Seconds that a run still needs."""
    if run.has_ended:
        return 0.0
    to_do = max(1, run.steps - forecast.step)
    share_left = min(1.0, max(0.0, (run.steps - run.step) / to_do))
    left_s = forecast.seconds[1] * ratio * share_left
    if run.spent_s and not run.step > forecast.step:  # it is starting
        left_s = max(0.0, left_s - run.spent_s)
    return left_s


@cached_by_stat(lambda path: [path])
def read_forecast(path: Path) -> Forecast | None:
    """Read a submission's `forecast.json`. None if there is none, or it is damaged."""
    try:
        return Forecast.model_validate_json(read_regular(path))
    except (FileNotFoundError, ValidationError, IrregularFile):
        return None


def as_json(forecast: Forecast) -> dict[str, Any]:
    """Its content for `write_json`."""
    return forecast.model_dump(mode="json")
