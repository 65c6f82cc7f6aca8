"""Differences tested over samples: would these networks, trained as they are, differ on other samples of the kind?

The tests over seeds ask another question: would other trainings differ on these samples? A claim needs both.

N samples of a split; S seeds that both rows have.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.records.predictions import read_arrays
from furnace_hpc.tables.output.cells import scale_of
from furnace_hpc.tables.output.notes import named
from furnace_hpc.tables.statistics.estimates import LEVEL, Interval
from furnace_hpc.tables.table import Ablation, Note, Row, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
SAME = 1e-6  # a result's accuracy, and that of its predictions


def over_samples(ablation: Ablation) -> tuple[Note, ...]:
    """What the predictions of all runs say of each row's difference to the reference.

    Raises:
        ConfigError: the table's metric is no accuracy of a split: other metrics are no means over samples; or the
            grid has several packs, whose samples are not the same.
    """
    metric, reference = ablation.grid.metric, ablation.reference
    if ablation.packs:
        raise ConfigError(
            f"--samples: {len(ablation.packs)} packs have samples of their own: look at one with --where "
            f"data.name={ablation.packs[0]}"
        )
    split, _, rest = metric.partition("/")
    task, _, name = rest.partition("/")
    if name != "accuracy":
        raise ConfigError(
            f"--samples: {metric} is no mean over samples: ask for --metric {split}/{task}/accuracy"
        )
    lacking: list[str] = []
    right = {
        run.run_id: _right(run, split, task, lacking)
        for run in ablation.runs
        if run.value is not None
    }
    words, scale = [], scale_of(metric)
    for row in ablation.rows:
        if reference is None or row is reference:
            continue
        pairs = [
            (right.get(one.run_id), right.get(other.run_id))
            for one, other in _pairs(row, reference)
        ]
        whole = [(one, other) for one, other in pairs if one and other]
        same = [
            (one[1], other[1]) for one, other in whole if one[0].tobytes() == other[0].tobytes()
        ]
        if len(same) < len(whole):
            lacking.append(f"{row.variant} was tested on other samples than {reference.variant}")
        if not same:
            continue
        mean, (low, high) = bootstrap(same)
        text = f"{scale.show(mean, signed=True)} [{scale.show(low)}, {scale.show(high)}]"
        words.append(
            f"{row.variant} {text} ({len(same)} pair{'s' if len(same) > 1 else ''} of runs)"
        )
    notes = [Note(f"--samples: {named(lacking)}")] if lacking else []
    if words:
        about = f"difference to {ablation.grid.reference}{scale.difference_unit} over samples"
        how = f"paired bootstrap over the {split} split's samples, {RESAMPLES:,} resamples, 95 % percentile interval"
        said = "the trainings held as they are: it says nothing of other seeds"
        notes.insert(0, Note(f"{about}: {'; '.join(words)}. {how.capitalize()}, {said}"))
    return tuple(notes)


def bootstrap(
    pairs: Sequence[tuple["NDArray[np.bool_]", "NDArray[np.bool_]"]],
) -> tuple[float, Interval]:
    """Mean difference of S pairs of networks, and its 95 % percentile interval over samples.

    A sample's difference is the mean over pairs of right (N,) minus right (N,) of the other: one of 2S + 1 values.
    To draw N samples is to draw how often each value comes, which is a multinomial draw. The draws are the same
    each time.
    """
    import numpy as np

    total_N = sum(one.astype(np.int64) - other.astype(np.int64) for one, other in pairs)
    counts = Counter(np.asarray(total_N).tolist())
    values = np.array(sorted(counts))
    shares = np.array([counts[value] for value in values.tolist()]) / counts.total()
    drawn = np.random.default_rng(0).multinomial(counts.total(), shares, size=RESAMPLES)
    means = drawn @ values / (counts.total() * len(pairs))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return sum(value * count for value, count in counts.items()) / (counts.total() * len(pairs)), (
        low,
        high,
    )


def _pairs(row: Row, reference: Row) -> list[tuple[Run, Run]]:
    """Runs of both rows that have the same seed, where each row has one; there is one pack."""
    ours, theirs = (
        {run.seed: run for run in of.runs if len(of.runs) == of.n_expected}
        for of in (row, reference)
    )
    return [(run, theirs[seed]) for seed, run in ours.items() if seed in theirs]


def _right(
    run: Run, split: str, task: str, lacking: list[str]
) -> "tuple[NDArray[np.int64], NDArray[np.bool_]] | None":
    """Sample ids (N,) and whether the network is right (N,); None where that cannot be known, with the reason."""
    wanted = ("sample_id", f"logits.{task}", f"label.{task}")
    try:
        ids, logits, label = read_arrays(run.folder.predictions(split), wanted)
    except FileNotFoundError:
        lacking.append(f"{run.run_id} has no predictions of {split}")
        return None
    except ConfigError as error:
        lacking.append(f"the predictions of {run.run_id} cannot be read: {error}")
        return None
    fit = (
        ids.ndim == 1
        and ids.dtype.kind in "iu"
        and logits.ndim == 2
        and label.shape == ids.shape == logits.shape[:1]
    )
    if not fit or not logits.size:
        lacking.append(
            f"the predictions of {run.run_id} cannot be read: arrays of other shapes than wanted"
        )
        return None
    ids_N, right_N = ids.astype("int64"), logits.argmax(1) == label
    if run.value is None or not abs(right_N.mean() - run.value) <= SAME:
        lacking.append(f"the predictions of {run.run_id} are not those of its result")
        return None
    return ids_N, right_N
