"""Names of what is measured: `<split>/<task>/<metric>`, and what is measured once, at a run's end, after `@`.

`<split>/<task>/<metric>@text+image` is the same metric where the network sees these modalities alone, and
`<split>/consistency/<metric>@text+image` tells what the embeddings of two modalities have to do with each other.
"""

import itertools
from typing import Literal, TypeVar

from furnace_hpc.config.errors import ConfigError

M = TypeVar("M")
Direction = Literal["max", "min"]

# What model/scores.py gives for each kind of task; the first selects the step where no other is
# named.
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
}
# What model/consistency.py gives for two modalities.
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
# A distance or a loss: less is better (Wang and Isola 2020 give alignment and uniformity as
# losses).
LOWER_IS_BETTER = frozenset(
    {
        "loss",
        "cosine_mismatched",
        "median_rank_there",
        "median_rank_back",
        "alignment",
        "uniformity",
    }
)
# Counts, settings and chance levels. The gap too: a smaller one may help or harm (Liang et al.
# 2022).
NEITHER_IS_BETTER = frozenset(
    {
        "classes_scored",
        "threshold",
        "gap",
        "samples",
        *(f"recall_at_{k}_chance" for k in (1, 5, 10)),
    }
)
# For the reference in docs/. Scores are of a whole split; consistency compares the embeddings of
# two modalities.
DESCRIPTIONS = {
    "accuracy": "share of samples whose most probable class is the label",
    "f1_macro": "mean F1 over classes; single_label: over classes that occur in labels or predictions",
    "f1_weighted": "mean F1 over classes, weighted by the number of samples with the label",
    "f1_micro": "F1 over all (sample, class) pairs at the threshold",
    "f1_samples": "mean over samples of the F1 of each sample's classes at the threshold",
    "loss": "mean cross-entropy, or binary cross-entropy for multi_label",
    "map": "mean average precision over classes that have positives and negatives",
    "auc": "area under the ROC curve; consistency: probability that a matched pair has the higher cosine",
    "d_prime": "square root of 2 times the normal quantile of the mean AUC (Gemmeke et al. 2017)",
    "classes_scored": "number of classes that have positives and negatives",
    "threshold": "probability above which a class is predicted; validation chooses it for the best micro F1",
    "cosine_matched": "mean cosine of the two embeddings of one sample",
    "cosine_mismatched": "mean cosine of embeddings of two samples",
    "cosine_difference": "cosine_matched minus cosine_mismatched",
    **{
        f"recall_at_{k}_{way}": f"share of samples whose partner is among the {k} nearest, {meaning}"
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
    """Which way a metric is better. None if neither way is, and if there is no such metric."""
    name = metric.partition("@")[0].rsplit("/", 1)[-1]
    if name in NEITHER_IS_BETTER or name not in _ALL:
        return None
    return "min" if name in LOWER_IS_BETTER else "max"


def checked_direction(metric: str, direction: Direction | None) -> Direction:
    """Which way a table's metric is better. One that does not exist gets `max`: other checks refuse its name.

    Raises:
        ConfigError: the direction contradicts the metric, or neither way is better and none is given.
    """
    own = metric_direction(metric)
    if own and direction and own != direction:
        better = "higher" if own == "max" else "lower"
        raise ConfigError(
            f"direction {direction} contradicts metric {metric!r}, of which {better} is better: "
            f"remove the direction, or give {own}"
        )
    name = metric.partition("@")[0].rsplit("/", 1)[-1]
    if own is None and direction is None and name in NEITHER_IS_BETTER:
        raise ConfigError(
            f"metric {metric!r} has no better direction of its own: give the direction, max or min"
        )
    return own or direction or "max"


def subsets(modalities: tuple[M, ...]) -> list[tuple[M, ...]]:
    """All non-empty subsets, the small ones first."""
    return [
        part
        for size in range(1, len(modalities) + 1)
        for part in itertools.combinations(modalities, size)
    ]


def metric_names(
    kinds: dict[str, str], modalities: tuple[str, ...], splits: tuple[str, ...]
) -> list[str]:
    """Every metric of a run: `kinds` is task -> kind; without modalities, what every evaluation has."""
    parts = {"+".join(part): len(part) for part in subsets(modalities)}
    names = [
        f"{split}/{task}/{name}"
        for split in splits
        for task, kind in kinds.items()
        for name in METRICS[kind]
    ]
    whole = names.copy()
    names += [f"{name}@{part}" for name in whole if name.startswith("test/") for part in parts]
    pairs = [part for part, size in parts.items() if size == 2]
    return names + [
        f"test/consistency/{name}@{pair}"
        for name in CONSISTENCY
        for pair in pairs
        if "test" in splits
    ]
