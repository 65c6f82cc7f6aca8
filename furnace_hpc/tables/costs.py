"""What runs took, from the ledger of their attempts: hours, steps trained twice, and the share that was training.

An attempt that has not ended is not counted: what is written from the same files stays the same.
"""

from dataclasses import dataclass

from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.resume_overrides import ways
from furnace_hpc.tables.run_files import Record

THEN = "; then "


@dataclass(frozen=True)
class Spent:
    """What all attempts of one run took together."""

    hours: float = 0.0  # GPU-hours; process-hours where no GPU was given
    gpus: bool = False
    lost_steps: int = 0  # optimizer steps that were trained, lost, and trained again
    # seconds in steps that counted, over seconds of all attempts; of a finished run
    goodput: float | None = None
    ways: str = ""  # how its attempts trained, processes and ZeRO stage, each change named


@dataclass(frozen=True)
class Costs:
    """What a row took. Times and rates are means over its results, in seconds and samples per second."""

    train_s: float | None
    samples_per_s: float | None
    attempts: int
    peak_memory_gib: float | None
    num_parameters: int | None
    # from the first attempt's start to the result, waiting for a place included
    wall_s: float | None = None
    samples_per_s_each: float | None = None  # per process: that is, per GPU
    lost_steps: int = 0  # sum over runs, missing ones too
    # GPU-hours (process-hours without GPUs): sum over runs, missing ones too
    hours: float | None = None
    goodput: float | None = None  # mean over finished runs


def spent_of(record: Record, result: RunResult | None) -> Spent:
    """What the ledger says of one run."""
    attempts = record.ledger()
    times_s = [
        attempt.end_unix_s - attempt.start_unix_s for attempt in attempts if attempt.end_unix_s
    ]
    ended = [attempt for attempt in attempts if attempt.end_unix_s]
    width = [attempt.gpus or attempt.world_size or 1 for attempt in ended]
    allocated_s = sum(times_s)
    return Spent(
        hours=sum(time_s * number for time_s, number in zip(times_s, width, strict=True)) / 3600,
        gpus=any(attempt.gpus for attempt in attempts),
        lost_steps=record.lost_steps,
        goodput=result.train_s / allocated_s
        if result and allocated_s and len(ended) == len(attempts)
        else None,
        ways=THEN.join(ways(attempts)),
    )
