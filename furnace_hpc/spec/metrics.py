"""Names of what is measured: `<split>/<task>/<metric>`, and what is measured once, at a run's end, after `@`.

`<split>/<task>/<metric>@text+image` is the same metric where the network sees these modalities alone, and
`<split>/consistency/<metric>@text+image` tells what the embeddings of two modalities have to do with each other.
"""

import itertools
from typing import TypeVar

M = TypeVar("M")

# What model/scores.py gives for each kind of task; the first selects the step where no other is named.
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


def subsets(modalities: tuple[M, ...]) -> list[tuple[M, ...]]:
    """All non-empty subsets, the small ones first."""
    return [part for size in range(1, len(modalities) + 1) for part in itertools.combinations(modalities, size)]


def metric_names(kinds: dict[str, str], modalities: tuple[str, ...], splits: tuple[str, ...]) -> list[str]:
    """Every metric of a run: `kinds` is task -> kind; without modalities, what every evaluation has."""
    parts = {"+".join(part): len(part) for part in subsets(modalities)}
    names = [f"{split}/{task}/{name}" for split in splits for task, kind in kinds.items() for name in METRICS[kind]]
    whole = names.copy()
    names += [f"{name}@{part}" for name in whole if name.startswith("test/") for part in parts]
    pairs = [part for part, size in parts.items() if size == 2]
    return names + [f"test/consistency/{name}@{pair}" for name in CONSISTENCY for pair in pairs if "test" in splits]
