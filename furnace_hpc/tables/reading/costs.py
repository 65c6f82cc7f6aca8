"""Costs of runs and rows: hours, steps that were trained twice, and the share of useful time.

Attempts that have not ended are not counted. So the same files always give the same costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.resume_overrides import describe_setups
from furnace_hpc.tables.reading.run_files import Record
from furnace_hpc.tables.statistics.estimates import median

THEN = "; then "
# cost that is a median -> how it is shown, and the factor to the unit that is shown
MEDIANS = {
    "train_s": (".1f", 1),
    "wall_s": (".1f", 1),
    "samples_per_s_each": (".1f", 1),
    "model_tflop_s": (".3g", 1),
    "mfu": (".1f", 100),
    "data_wait": (".1f", 100),
    "goodput": (".1f", 100),
}
WIDE = 1.5  # if the highest cost of a row's runs is more than this times the lowest, a note says so


@dataclass(frozen=True)
class AttemptCosts:
    """Costs of all attempts of one run together."""

    hours: float = 0.0  # GPU-hours; process-hours if no attempt had a GPU
    gpus: bool = False
    lost_steps: int = 0  # optimizer steps that were trained, lost, and trained again
    # seconds in steps that count, divided by seconds of all attempts; finished runs only
    goodput: float | None = None
    setups: str = ""  # processes and ZeRO stage of the attempts, each change named


@dataclass(frozen=True)
class Costs:
    """Costs of a row.

    Times and rates are medians over its results, in seconds and samples per second. So one slow run
    does not decide them.
    """

    train_s: float | None
    samples_per_s: float | None
    attempts: int
    peak_memory_gib: float | None
    num_parameters: int | None
    wall_s: float | None  # from the start of the first attempt to the result, waiting included
    samples_per_s_each: float | None  # per process: that is, per GPU
    lost_steps: int  # sum over runs, missing ones included
    hours: float | None  # GPU-hours (process-hours without GPUs): sum, missing runs included
    goodput: float | None  # median over finished runs
    model_tflop_s: float | None  # of one process or GPU, median
    mfu: float | None  # share of the GPU's peak, median
    data_wait: float | None  # share of train_s, median
    energy_kj: float | None  # sum over results; None if one of them does not know it
    trainable: int | None = None  # of num_parameters, those that are trained
    # median -> lowest and highest run, if there are several runs
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def columns(self) -> dict[str, float | None]:
        """Each cost by its name, with `_min` and `_max` of those that are medians."""
        found = {name: value for name, value in vars(self).items() if name != "ranges"}
        for name in MEDIANS:
            low, high = self.ranges.get(name, (None, None))
            found |= {f"{name}_min": low, f"{name}_max": high}
        return found

    def shown(self) -> dict[str, float | None]:
        """Each cost by its name, in the unit of its column. Shares are percentages."""
        found = {name: value for name, value in vars(self).items() if name != "ranges"}
        for name, (_, factor) in MEDIANS.items():
            if found[name] is not None:
                found[name] *= factor
        return found

    def range_texts(self) -> dict[str, str]:
        """Median -> lowest and highest run as they are shown. None for runs that look equal."""
        found = {}
        for name, bounds in self.ranges.items():
            form, factor = MEDIANS[name]
            low, high = (format(factor * bound, form) for bound in bounds)
            if low != high:
                found[name] = f"{low} to {high}"
        return found


def costs_of_attempts(record: Record, result: RunResult | None) -> AttemptCosts:
    """Costs of one run, from the records of its attempts."""
    attempts = record.ledger()
    ended = [attempt for attempt in attempts if attempt.end_unix_s]
    times_s = [_time_s(attempt) for attempt in ended]
    gpu_times_s = [_time_s(attempt) * _width(attempt) for attempt in ended]
    total_s = sum(times_s)
    goodput = None
    if result and total_s and len(ended) == len(attempts):
        goodput = result.train_s / total_s
    return AttemptCosts(
        hours=sum(gpu_times_s) / 3600,
        gpus=any(attempt.gpus for attempt in attempts),
        lost_steps=record.lost_steps,
        goodput=goodput,
        setups=THEN.join(describe_setups(attempts)),
    )


def row_costs(results: Sequence[RunResult], attempts: int, spent: Sequence[AttemptCosts]) -> Costs:
    """Costs of a row with these results, number of attempts, and costs of each run's attempts."""
    num_parameters = {result.num_parameters for result in results}
    trainable = {result.trainable_parameters for result in results}
    of_runs = {
        "train_s": [result.train_s for result in results],
        "wall_s": [result.wall_s for result in results],
        "samples_per_s_each": [result.samples_per_s / result.world_size for result in results],
        "model_tflop_s": _known([result.model_tflop_s for result in results]),
        "mfu": _known([result.mfu for result in results]),
        "data_wait": _known([_data_wait(result) for result in results]),
        "goodput": _known([run.goodput for run in spent]),
    }
    medians = {name: median(values) for name, values in of_runs.items()}
    return Costs(
        **medians,
        samples_per_s=median([result.samples_per_s for result in results]),
        attempts=attempts,
        peak_memory_gib=max((result.peak_memory_gib for result in results), default=None),
        num_parameters=_only(num_parameters),
        lost_steps=sum(run.lost_steps for run in spent),
        hours=sum(run.hours for run in spent) or None,
        energy_kj=_energy_kj(results),
        trainable=_only(trainable),
        ranges={name: (min(of), max(of)) for name, of in of_runs.items() if len(of) > 1},
    )


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _data_wait(result: RunResult) -> float | None:
    """Share of the training time in which the slowest process waited for data."""
    if result.data_wait_s is None or not result.train_s:
        return None
    return result.data_wait_s / result.train_s


def _energy_kj(results: Sequence[RunResult]) -> float | None:
    energies = _known([result.energy_j for result in results])
    if not energies or len(energies) < len(results):
        return None
    return sum(energies) / 1000


def wide_range(values: Sequence[float]) -> tuple[float, float] | None:
    """Lowest and highest cost, if they differ by more than WIDE. None if not."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high > WIDE * low:
        return low, high
    return None


def _time_s(attempt: Attempt) -> float:
    return (attempt.end_unix_s or 0.0) - attempt.start_unix_s


def _width(attempt: Attempt) -> float:
    """Number of GPUs, or of processes if it had no GPU."""
    return attempt.gpus or attempt.world_size or 1


def _only(numbers: set[int] | set[int | None]) -> int | None:
    """The one number of a set. None if it does not have exactly one."""
    if len(numbers) != 1:
        return None
    (number,) = numbers
    return number
