"""Compare rows over samples: would these trained networks differ on other samples of the same kind?

The tests over seeds answer another question: would other trainings differ on these samples? A claim
needs both.

N samples of a split. S pairs of runs that have the same seed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.records.predictions import read_arrays
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.statistics.bootstrap import bootstrap
from furnace_hpc.tables.statistics.estimates import Interval
from furnace_hpc.tables.table import Ablation, Row, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAME = 1e-6  # a result's accuracy may differ this much from that of its predictions


class Answers(NamedTuple):
    """Predictions of one run."""

    sample_id_N: "NDArray[np.int64]"
    right_N: "NDArray[np.bool_]"  # whether the most probable class is the label


class SampleDifference(NamedTuple):
    """Difference of a row to the reference over samples."""

    variant: str
    mean: float
    interval: Interval  # 95 % percentile interval
    n: int  # pairs of runs


@dataclass(frozen=True)
class SampleComparison:
    """Differences of all rows to the reference, and what could not be compared."""

    differences: tuple[SampleDifference, ...]
    problems: tuple[str, ...]


class UnusablePredictions(Exception):
    """The predictions of a run are missing, or unreadable, or belong to another result."""


def compare_samples(ablation: Ablation) -> SampleComparison:
    """Compare all rows with the reference, from the predictions of their runs.

    Raises:
        ConfigError: the metric is not an accuracy, so it is no mean over samples. Or the grid has
            several packs, which have different samples.
    """
    metric, reference = ablation.metric, ablation.reference
    if ablation.packs:
        raise ConfigError(
            f"--samples: the {len(ablation.packs)} packs have different samples. "
            f"Choose one: --where data.name={ablation.packs[0]}"
        )
    if metric.short_name != "accuracy":
        raise ConfigError(
            f"--samples: {metric.name} is not a mean over samples. "
            f"Use --metric {metric.split}/{metric.task}/accuracy"
        )
    if reference is None:
        return SampleComparison((), ())
    problems: list[str] = []
    answers: dict[str, Answers] = {}
    for run in ablation.runs:
        if run.value is None:
            continue
        try:
            answers[run.run_id] = _answers(run, metric)
        except UnusablePredictions as error:
            problems.append(str(error))
    found = []
    for row in ablation.compared:
        pairs, all_same = _pairs(row, reference, answers)
        if not all_same:
            problems.append(f"{row.variant} was tested on other samples than {reference.variant}")
        if pairs:
            found.append(SampleDifference(row.variant, *bootstrap(pairs), len(pairs)))
    return SampleComparison(tuple(found), tuple(problems))


def _pairs(
    row: Row, reference: Row, answers: dict[str, Answers]
) -> tuple[list[tuple["NDArray[np.bool_]", "NDArray[np.bool_]"]], bool]:
    """Right answers of runs with the same seed, and whether the runs of each pair share samples."""
    found, all_same = [], True
    for run, other in _runs_by_seed(row, reference):
        one, two = answers.get(run.run_id), answers.get(other.run_id)
        if one is None or two is None:
            continue
        if one.sample_id_N.tobytes() == two.sample_id_N.tobytes():
            found.append((one.right_N, two.right_N))
        else:
            all_same = False
    return found, all_same


def _runs_by_seed(row: Row, reference: Row) -> list[tuple[Run, Run]]:
    """Runs of both rows with the same seed. Empty if a row has several runs per seed."""
    if any(len(either.runs) != either.n_expected for either in (row, reference)):
        return []
    theirs = {run.seed: run for run in reference.runs}
    return [(run, theirs[run.seed]) for run in row.runs if run.seed in theirs]


def _answers(run: Run, metric: Metric) -> Answers:
    """Read the predictions of a run.

    Raises:
        UnusablePredictions: they are missing, unreadable, or do not give the run's accuracy.
    """
    names = ("sample_id", f"logits.{metric.task}", f"label.{metric.task}")
    try:
        ids, logits, label = read_arrays(run.folder.predictions(metric.split), names)
    except FileNotFoundError as error:
        raise UnusablePredictions(f"{run.run_id} has no predictions of {metric.split}") from error
    except ConfigError as error:
        raise UnusablePredictions(
            f"the predictions of {run.run_id} cannot be read: {error}"
        ) from error
    fit = (
        ids.ndim == 1
        and ids.dtype.kind in "iu"
        and logits.ndim == 2
        and label.shape == ids.shape == logits.shape[:1]
    )
    if not fit or not logits.size:
        raise UnusablePredictions(
            f"the predictions of {run.run_id} cannot be read: the arrays have other shapes"
        )
    ids_N, right_N = ids.astype("int64"), logits.argmax(1) == label
    if run.value is None or not abs(right_N.mean() - run.value) <= SAME:
        raise UnusablePredictions(f"the predictions of {run.run_id} do not give its result")
    return Answers(ids_N, right_N)
