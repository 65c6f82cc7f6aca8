"""Names, directions and descriptions of metrics.

- `<split>/<task>/<metric>` is measured at every evaluation.
- `<split>/<task>/<metric>:<target>` is the metric of one target of a regression with several.
- `<split>/<task>/<metric>@text+image` is the same metric with only these modalities as input.
- `<split>/consistency/<metric>@text+image` compares the embeddings of two modalities.

The last two are measured at the end of a run.
"""

import itertools
import re
from collections.abc import Container
from functools import lru_cache
from typing import Literal, TypeVar

from furnace_hpc.config.errors import ConfigError

M = TypeVar("M")
Direction = Literal["max", "min"]

# The metrics of model/scores.py for each kind of task. By default the first selects the step.
METRICS = {
    "single_label": ("accuracy", "f1_macro", "f1_weighted", "loss"),
    "multi_label": (
        "map",
        "auc",
        "d_prime",
        "classes_scored",
        "f1_micro",
        "f1_macro",
        "f1_weighted",
        "f1_samples",
        "threshold",
        "loss",
    ),
    "ordinal": ("qwk", "mae", "accuracy", "loss"),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman", "ccc", "loss"),
}
# Those that each target of a regression has, too. The others are of the task.
OF_TARGETS = frozenset(METRICS["regression"]) - {"loss"}
# The metrics of model/consistency.py for two modalities.
CONSISTENCY = (
    "cosine_matched",
    "cosine_mismatched",
    "cosine_difference",
    "auc",
    *(f"recall_at_{k}_{way}" for way in ("there", "back", "chance") for k in (1, 5, 10)),
    "median_rank_there",
    "median_rank_back",
    "gap",
    "alignment",
    "uniformity",
    "cka",
    "samples",
)
# Distances and losses. Wang and Isola 2020 define alignment and uniformity as losses.
LOWER_IS_BETTER = frozenset(
    {
        "loss",
        "mae",
        "rmse",
        "cosine_mismatched",
        "median_rank_there",
        "median_rank_back",
        "alignment",
        "uniformity",
    }
)
# Counts, settings and chance levels. A smaller gap may help or harm (Liang et al. 2022).
NEITHER_IS_BETTER = frozenset(
    {
        "classes_scored",
        "threshold",
        "gap",
        "samples",
        *(f"recall_at_{k}_chance" for k in (1, 5, 10)),
    }
)
# For the reference in docs/. Scores are of a whole split.
DESCRIPTIONS = {
    "accuracy": "share of samples whose most probable class is the label",
    "f1_macro": "mean F1 over classes; single_label: over classes that "
    "occur in labels or predictions",
    "f1_weighted": "mean F1 over classes, weighted by the number of samples with the label",
    "f1_micro": "F1 over all (sample, class) pairs at the threshold",
    "f1_samples": "mean over samples of the F1 of each sample's classes at the threshold",
    "loss": "mean cross-entropy; multi_label: binary cross-entropy; ordinal: negative "
    "log-likelihood; regression: squared error of standardised targets",
    "qwk": "quadratic weighted kappa of predicted and true levels (Cohen 1968)",
    "mae": "mean absolute error in the target's units, mean over targets; ordinal: in levels",
    "rmse": "root mean squared error in the target's units, mean over targets",
    "r2": "1 minus squared error divided by the variance of the target, mean over targets",
    "pearson": "correlation of predictions and targets, mean over targets",
    "spearman": "correlation of the ranks of predictions and targets, mean over targets",
    "ccc": "concordance correlation coefficient (Lin 1989), mean over targets",
    "map": "mean average precision over classes that have positives and negatives",
    "auc": "area under the ROC curve; consistency: probability that a matched pair has the "
    "higher cosine",
    "d_prime": "square root of 2 times the normal quantile of the mean AUC (Gemmeke et al. 2017)",
    "classes_scored": "number of classes that have positives and negatives",
    "threshold": "probability above which a class is predicted; chosen on validation for the best "
    "micro F1",
    "cosine_matched": "mean cosine of the two embeddings of one sample",
    "cosine_mismatched": "mean cosine of embeddings of two samples",
    "cosine_difference": "cosine_matched minus cosine_mismatched",
    **{
        f"recall_at_{k}_{way}": f"share of samples whose partner is among {k} nearest, {meaning}"
        for k in (1, 5, 10)
        for way, meaning in (
            ("there", "second modality from the first"),
            ("back", "first modality from the second"),
            ("chance", "for a random order"),
        )
    },
    "median_rank_there": "median rank of the partner, second modality from the first",
    "median_rank_back": "median rank of the partner, first modality from the second",
    "gap": "distance between the mean embeddings of the two modalities (Liang et al. 2022)",
    "alignment": "mean squared distance of matched embeddings (Wang and Isola 2020)",
    "uniformity": "log mean Gaussian potential within a modality (Wang and Isola 2020)",
    "cka": "linear centred kernel alignment (Kornblith et al. 2019), debiased (Song et al. 2012)",
    "samples": "number of samples that have both modalities",
}
_ALL = frozenset({*CONSISTENCY, *(name for names in METRICS.values() for name in names)})


def metric_direction(metric: str) -> Direction | None:
    """Whether higher (max) or lower (min) is better. None if neither is, or if it is unknown."""
    name = _last_part(metric)
    if name in NEITHER_IS_BETTER or name not in _ALL:
        return None
    if name in LOWER_IS_BETTER:
        return "min"
    return "max"


def foreign_direction(metric: str) -> Direction | None:
    """The direction of another tool's metric.

    None also for the names of consistency scores without their task, such as `alignment`. Others
    use them for scores where higher is better.
    """
    name = _last_part(metric)
    is_of_task = any(name in names for names in METRICS.values())
    if not is_of_task and "consistency" not in metric.split("/"):
        return None
    return metric_direction(metric)


def is_one_of(metric: str, names: Container[str]) -> bool:
    """Whether the name of a metric, without split, task and subset, is one of these."""
    return _last_part(metric) in names


def checked_direction(metric: str, direction: Direction | None) -> Direction:
    """The direction of a table's metric. For an unknown metric it is `max`: other checks refuse it.

    Raises:
        ConfigError: the direction contradicts the metric, or the metric has none and none is given.
    """
    own = metric_direction(metric)
    if own and direction and own != direction:
        better = {"max": "higher", "min": "lower"}[own]
        raise ConfigError(
            f"direction {direction} contradicts metric {metric!r}: {better} is better. "
            f"Remove the direction, or write {own}"
        )
    if own is None and direction is None and _last_part(metric) in NEITHER_IS_BETTER:
        raise ConfigError(
            f"metric {metric!r} has no direction of its own. Write direction: max or min"
        )
    return own or direction or "max"


def _last_part(metric: str) -> str:
    return split_target(metric)[0].partition("@")[0].rsplit("/", 1)[-1]


def split_target(metric: str) -> tuple[str, str]:
    """Return the metric of all targets and the target: `test/mood/mae:valence` -> valence.

    The target is empty if the metric has none.
    """
    name, at, subset = metric.partition("@")
    prefix, slash, last = name.rpartition("/")
    last, _, target = last.partition(":")
    return f"{prefix}{slash}{last}{at}{subset}", target


def target_key(target: str) -> str:
    """Return the name of a target in a metric, without the characters that have a meaning there."""
    return re.sub(r"[\s/@:]+", "_", target)


def subsets(modalities: tuple[M, ...]) -> list[tuple[M, ...]]:
    """All non-empty subsets, the smallest first."""
    return [
        part
        for size in range(1, len(modalities) + 1)
        for part in itertools.combinations(modalities, size)
    ]


def metric_names(
    kinds: dict[str, str],
    modalities: tuple[str, ...],
    splits: tuple[str, ...],
    own: tuple[str, ...] = (),
) -> list[str]:
    """Every metric of a run.

    Args:
        kinds: task -> kind.
        modalities: of the network. If empty, only the metrics of every evaluation are returned.
        splits: names of splits.
        own: names of the user's own metrics, which every task has.
    """
    parts = subsets(modalities)
    names = [
        f"{split}/{task}/{name}"
        for split in splits
        for task, kind in kinds.items()
        for name in (*METRICS[kind], *own)
    ]
    tests = [name for name in names if name.startswith("test/")]
    names += [f"{name}@{'+'.join(part)}" for name in tests for part in parts]
    if "test" in splits:
        pairs = ["+".join(part) for part in parts if len(part) == 2]
        names += [f"test/consistency/{name}@{pair}" for name in CONSISTENCY for pair in pairs]
    return names


@lru_cache(maxsize=64)  # the rows of a grid have few different tasks
def valid_metrics(
    kinds: tuple[tuple[str, str], ...],
    modalities: tuple[str, ...],
    splits: tuple[str, ...],
    own: tuple[str, ...],
) -> frozenset[str]:
    """`metric_names` as a set. `kinds` has (task, kind) of each task."""
    return frozenset(metric_names(dict(kinds), modalities, splits, own))
