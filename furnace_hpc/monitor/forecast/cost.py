"""What runs of one kind cost, from measured attempts, and how long a run will take."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.monitor.forecast.attempt_times import AttemptTimes
from furnace_hpc.monitor.forecast.spread import Spread, spread_of

SAFETY = 1.25  # of a time limit, over the slow end of the forecast
EARLY_S = 60  # Slurm sends the signal of --signal up to this much before its time
SAVES = 2  # one in progress, and the last one
# Limits are rounded up to these minutes, so that runs with similar limits share an array.
LADDER = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 960, 1440)
DAY = 1440


@dataclass(frozen=True)
class Work:
    """What a run still has to do."""

    steps: int
    evaluations: int  # before the last step, whose evaluation is part of the end
    least_steps: int  # if early stopping ends the training as soon as it can
    save_every: int

    @classmethod
    def of_run(cls, config: TrainConfig, step: int) -> "Work":
        """The work of a run after a step."""
        every = config.evaluation.every
        steps = least = max(0, config.steps - step)
        if config.early_stopping:
            least = min(steps, every * (config.early_stopping.patience + 1))
        evaluations = max(0, (config.steps - 1) // every - step // every)
        return cls(steps, evaluations, least, min(config.checkpoint_every, max(1, steps)))


@dataclass(frozen=True)
class TimeLimit:
    """The time limit of each attempt of a run, and the attempts that it will need."""

    minutes: int
    attempts: int = 1
    least_min: int = 0  # that one start and one checkpoint interval need


@dataclass(frozen=True)
class RunCost:
    """Measured seconds of the parts of runs of one kind."""

    launch: Spread
    startup: Spread
    step: Spread
    evaluation: Spread
    end: Spread
    save: Spread
    num_runs: int
    longest_launch_s: float = 0.0
    peak_gib: float | None = None
    unmeasured: tuple[str, ...] = ()  # parts that no attempt has shown. They count as 0

    @classmethod
    def pooled(cls, times: Sequence[AttemptTimes], num_runs: int) -> "RunCost | None":
        """The cost from all measured attempts of `num_runs` runs. None if there is none."""
        if not times:
            return None
        parts = {
            "launch": [one.launch_s for one in times if one.launch_s is not None],
            "startup": [one.startup_s for one in times if one.startup_s is not None],
            "step": [value for one in times for value in one.step_s],
            "evaluation": [value for one in times for value in one.evaluation_s],
            "end": [one.end_s for one in times if one.end_s is not None],
            "save": [value for one in times for value in one.save_s],
        }
        peaks = [one.peak_gib for one in times if one.peak_gib is not None]
        return cls(
            **{name: spread_of(values, num_runs) for name, values in parts.items()},
            num_runs=num_runs,
            longest_launch_s=max(parts["launch"], default=0.0),
            peak_gib=max(peaks, default=None),
            unmeasured=tuple(name for name, values in parts.items() if not values),
        )

    @property
    def start(self) -> Spread:
        """Seconds from the start of an attempt to its first step."""
        return self.launch + self.startup

    @property
    def first_launch(self) -> Spread:
        """Seconds until the first ranks of a local queue start. Others are forked at once."""
        return spread_of([self.longest_launch_s], self.num_runs)

    def time_of(self, work: Work, is_launched: bool = True) -> Spread:
        """Seconds of one attempt that does all the work.

        Args:
            work: what the run has to do.
            is_launched: whether the time of the launch counts.
        """
        start = self.start if is_launched else self.startup
        trained = self.step * work.steps + self.evaluation * work.evaluations
        whole = start + trained + self.end
        if work.least_steps == work.steps:
            return whole
        low = start.low + trained.low * work.least_steps / work.steps + self.end.low
        return Spread(low, whole.mid, whole.high)

    def time_limit(self, work: Work, signal_delay_s: float, longest_min: int | None) -> TimeLimit:
        """The time limit of the attempts of a run.

        Args:
            work: what the run has to do.
            signal_delay_s: seconds from the stop signal to the limit.
            longest_min: the largest limit that is allowed. None if there is no limit.
        """
        lead_s = max(signal_delay_s, SAVES * self.save.high) + EARLY_S
        interval = self.start + self.step * work.save_every + self.evaluation
        least_s = max(SAFETY * interval.high + lead_s, 2 * signal_delay_s)
        least_min = ceil(least_s / 60)
        wanted_s = max(SAFETY * self.time_of(work).high + lead_s, least_s)
        wanted_min = on_ladder(ceil(wanted_s / 60))
        if longest_min is None or wanted_min <= longest_min:
            return TimeLimit(wanted_min, 1, least_min)
        work_s = self.time_of(work).mid - self.start.mid
        usable_s = max(60 * longest_min - lead_s - self.start.mid, self.step.mid, 1e-3)
        return TimeLimit(longest_min, max(1, ceil(work_s / usable_s)), least_min)

    def describe(self) -> str:
        """`start 12 s, 0.42 s per step, save 3.1 s, 5.2 GiB, from 2 measured runs`."""
        parts = [f"start {self.start.mid:.3g} s", f"{self.step.mid:.3g} s per step"]
        if "save" not in self.unmeasured:
            parts.append(f"save {self.save.mid:.2g} s")
        if self.peak_gib is not None:
            parts.append(f"peak {self.peak_gib:.3g} GiB")
        text = f"{', '.join(parts)}, from {counted(self.num_runs, 'measured run')}"
        missing = [name for name in ("evaluation", "end") if name in self.unmeasured]
        if missing:
            text += f" (not measured: {' and '.join(missing)} of a run)"
        return text


def on_ladder(minutes: int) -> int:
    """Round minutes up to a usual limit."""
    for limit in LADDER:
        if minutes <= limit:
            return limit
    return DAY * ceil(minutes / DAY)
