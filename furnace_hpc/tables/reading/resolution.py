"""The smallest possible change of a metric: one sample of the split, for an accuracy.

N samples of a split.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.records.predictions import read_arrays

if TYPE_CHECKING:
    from furnace_hpc.tables.table import Run


def resolution_of(metric: str, runs: Sequence["Run"]) -> float:
    """1/N of an accuracy, for the smallest split among the runs.

    0 for other metrics, and if no run has recorded N.
    """
    name, _, subset = metric.partition("@")
    prefix, _, short_name = name.rpartition("/")
    if short_name != "accuracy":
        return 0.0
    numbers = []
    read: set[str] = set()  # data sets whose predictions were read
    for run in runs:
        result = run.own_result
        if result is None:
            continue
        number = _number_in_result(result.metrics, f"{prefix}/samples@", subset)
        if number is None and not subset and result.data_fingerprint not in read:
            number = _number_of_predictions(run, prefix.partition("/")[0])
            if number:
                read.add(result.data_fingerprint)
        if number and number >= 1:
            numbers.append(number)
    return 1 / min(numbers, default=float("inf"))


def _number_in_result(metrics: dict[str, float], prefix: str, subset: str) -> float | None:
    """N of a subset of the modalities, or of all modalities. None if the result does not have it.

    A run records the number of samples that have at least one modality of a subset.
    """
    if subset:
        return metrics.get(prefix + subset)
    return max((value for name, value in metrics.items() if name.startswith(prefix)), default=None)


def _number_of_predictions(run: "Run", split: str) -> float | None:
    """N of the run's predictions. None if they are missing or unreadable."""
    try:
        (ids_N,) = read_arrays(run.folder.predictions(split), ("sample_id",))
    except (OSError, ConfigError):
        return None
    return len(ids_N)
