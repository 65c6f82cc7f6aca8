"""What runs took, from the ledger of their attempts: hours, steps trained twice, and the share that was training.

An attempt that has not ended is not counted: what is written from the same files stays the same.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.ledger import Attempt, read_attempts
from furnace_hpc.runs.override import ways
from furnace_hpc.runs.records import RunResult, records_of_attempt

THEN = "; then "


@dataclass(frozen=True)
class Spent:
    """What all attempts of one run took together."""

    hours: float = 0.0  # GPU-hours; process-hours where no GPU was given
    gpus: bool = False
    lost_steps: int = 0  # optimizer steps that were trained, lost, and trained again
    goodput: float | None = None  # seconds in steps that counted, over seconds of all attempts; of a finished run
    ways: str = ""  # how its attempts trained, processes and ZeRO stage, each change named


@dataclass(frozen=True)
class Costs:
    """What a row took. Times and rates are means over its results, in seconds and samples per second."""

    train_s: float | None
    samples_per_s: float | None
    attempts: int
    peak_memory_gib: float | None
    num_parameters: int | None
    wall_s: float | None = None  # from the first attempt's start to the result, waiting for a place included
    samples_per_s_each: float | None = None  # per process: that is, per GPU
    lost_steps: int = 0  # sum over runs, missing ones too
    hours: float | None = None  # GPU-hours (process-hours without GPUs): sum over runs, missing ones too
    goodput: float | None = None  # mean over finished runs


def read_spent(folder: RunFolder, result: RunResult | None) -> Spent:
    """What the ledger says of one run."""
    attempts = read_attempts(folder)
    times_s = [attempt.end_unix_s - attempt.start_unix_s for attempt in attempts if attempt.end_unix_s]
    ended = [attempt for attempt in attempts if attempt.end_unix_s]
    width = [attempt.gpus or attempt.world_size or 1 for attempt in ended]
    allocated_s = sum(times_s)
    return Spent(
        hours=sum(time_s * number for time_s, number in zip(times_s, width, strict=True)) / 3600,
        gpus=any(attempt.gpus for attempt in attempts),
        lost_steps=_lost_steps(folder, attempts) if len(attempts) > 1 else 0,
        goodput=result.train_s / allocated_s if result and allocated_s and len(ended) == len(attempts) else None,
        ways=THEN.join(ways(attempts)),
    )


def _lost_steps(folder: RunFolder, attempts: Sequence[Attempt]) -> int:
    """Steps between where an attempt stopped and the checkpoint from which the next one that trained went on."""
    saved = list(_saved(folder))
    lost = reached = 0
    for attempt in attempts:
        if not attempt.step:
            continue  # it ended before its first step
        records = records_of_attempt(folder, attempt.attempt)
        first = min((record["step"] for record in records), default=attempt.step)
        since = max((step for number, step in saved if step < first and number < attempt.attempt), default=0)
        lost += max(0, reached - since)
        reached = attempt.step
    return lost


def _saved(folder: RunFolder) -> Iterator[tuple[int, int]]:
    """(attempt, step) of every checkpoint that was ever saved; a torn line is left out."""
    try:
        lines = folder.saved.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            record = json.loads(line)
            yield int(record["attempt"]), int(record["step"])
        except (ValueError, TypeError, KeyError):
            continue
