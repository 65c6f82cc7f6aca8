"""Compute the scores of a whole split from all its logits at once.

A mean of scores over batches or ranks would be a different number.

N samples, C classes, F frames of a clip.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional


def single_label_scores(logits_NC: Tensor, label_N: Tensor) -> dict[str, float]:
    """Compute accuracy, F1 and mean cross-entropy.

    Macro F1 is the mean over the classes that occur in labels or predictions.
    """
    logits_NC = logits_NC.double()
    predicted_N = logits_NC.argmax(1)
    classes = torch.arange(logits_NC.shape[1], device=logits_NC.device).unsqueeze(1)
    is_label, is_predicted = label_N == classes, predicted_N == classes
    hits = (is_label & is_predicted).sum(1).double()
    support = is_label.sum(1).double()
    sizes = (is_label.sum(1) + is_predicted.sum(1)).double()
    f1 = 2 * hits / sizes.clamp(min=1)
    return {
        "accuracy": (predicted_N == label_N).double().mean().item(),
        "f1_macro": f1[sizes > 0].mean().item(),
        "f1_weighted": ((f1 * support).sum() / support.sum()).item(),
        "loss": functional.cross_entropy(logits_NC, label_N).item(),
    }


def multi_label_scores(logits_NC: Tensor, label_NC: Tensor, threshold: float) -> dict[str, float]:
    """Compute ranking scores, F1 and the loss. Probabilities above `threshold` count as positive.

    Average precision and AUC are means over the classes that have both positives and negatives.
    `classes_scored` is their number. Without such a class the means are NaN. d-prime is sqrt(2)
    times the normal quantile of the mean AUC (Gemmeke et al. 2017). F1 is 0 if nothing is predicted
    and nothing is true, as in scikit-learn. The loss is the binary cross-entropy, a mean over
    classes.
    """
    logits_NC, truth_NC = logits_NC.double(), label_NC.bool()
    support_C = truth_NC.sum(0)
    has_both_C = (support_C > 0) & (support_C < len(truth_NC))
    scored = has_both_C.nonzero().flatten().tolist()
    auc = _mean_over(scored, lambda c: area_under_roc(logits_NC[:, c], truth_NC[:, c]))
    return {
        "map": _mean_over(scored, lambda c: average_precision(logits_NC[:, c], truth_NC[:, c])),
        "auc": auc,
        "d_prime": _d_prime(auc),
        "classes_scored": len(scored),
        **_f1(logits_NC.sigmoid() > threshold, truth_NC),
        "threshold": threshold,
        "loss": functional.binary_cross_entropy_with_logits(logits_NC, truth_NC.double()).item(),
    }


def mean_prediction(logits_FNC: Tensor, kind: str) -> Tensor:
    """Return the logits [N, C] of the mean probabilities of F predictions.

    The mean is computed from logarithms. Otherwise a probability could round to 1. For a regression
    it is the mean of the numbers.
    """
    if kind == "regression":
        return logits_FNC.mean(0)
    if kind == "multi_label":
        yes_NC, no_NC = (functional.logsigmoid(sign * logits_FNC).logsumexp(0) for sign in (1, -1))
        return yes_NC - no_NC
    return functional.log_softmax(logits_FNC, dim=-1).logsumexp(0) - math.log(len(logits_FNC))


def _d_prime(auc: float) -> float:
    if math.isnan(auc):
        return math.nan
    if 0 < auc < 1:
        return math.sqrt(2) * NormalDist().inv_cdf(auc)
    return math.copysign(math.inf, auc - 0.5)


def tune_threshold(logits_NC: Tensor, label_NC: Tensor) -> float:
    """Find the probability threshold with the best micro F1. Use it on the validation split only.

    The search is exact: it tries one threshold between each two neighbouring probabilities. If
    several are equally good, it returns the highest.
    """
    probability, order = logits_NC.double().sigmoid().flatten().sort(descending=True, stable=True)
    hits = label_NC.bool().flatten()[order].double().cumsum(0)
    count = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    f1 = 2 * hits / (count + hits[-1])
    f1[:-1][probability[:-1] == probability[1:]] = -1.0  # no threshold lies between equals
    k = int(f1.argmax())
    below = 0.0
    if k + 1 < len(probability):
        below = probability[k + 1].item()
    return (probability[k].item() + below) / 2


def average_precision(score_N: Tensor, truth_N: Tensor) -> float:
    """Area under the step-wise precision-recall curve. Equal scores make one step."""
    hits, count = _at_each_score(score_N, truth_N)
    gained = torch.diff(hits, prepend=hits.new_zeros(1))
    return ((hits / count) * gained).sum().item() / hits[-1].item()


def area_under_roc(score_N: Tensor, truth_N: Tensor) -> float:
    """Probability that a positive scores above a negative. Equal scores count as one half."""
    hits, count = _at_each_score(score_N, truth_N)
    misses = count - hits
    zero = hits.new_zeros(1)
    area = torch.trapezoid(torch.cat([zero, hits]), torch.cat([zero, misses]))
    return area.item() / (hits[-1] * misses[-1]).item()


def area_between(positive_N: Tensor, negative_M: Tensor) -> float:
    """The same number as `area_under_roc` of both together. Fast if there are few positives.

    Only the positives are sorted. All counts are exact, so both functions return the same bits.
    """
    if positive_N.isnan().any() or negative_M.isnan().any():
        is_positive = torch.cat([torch.ones_like(positive_N), torch.zeros_like(negative_M)]).bool()
        return area_under_roc(torch.cat([positive_N, negative_M]), is_positive)
    positive_N = positive_N.sort().values
    below_M = torch.searchsorted(positive_N, negative_M)  # positives below each negative
    next_M = positive_N[below_M.clamp(max=len(positive_N) - 1)]
    is_tied_M = next_M == negative_M
    below_tied = below_M[is_tied_M]
    ties = torch.searchsorted(positive_N, negative_M[is_tied_M], right=True) - below_tied
    num_pairs = len(positive_N) * len(negative_M)
    return (num_pairs - int(below_M.sum()) - int(ties.sum()) / 2) / num_pairs


def _at_each_score(score_N: Tensor, truth_N: Tensor) -> tuple[Tensor, Tensor]:
    """Count (positives, samples) at or above each distinct score, from the highest score down."""
    score, order = score_N.sort(descending=True)
    last_of_equals = torch.cat([score[1:] != score[:-1], score.new_ones(1, dtype=torch.bool)])
    hits = truth_N[order].double().cumsum(0)
    count = torch.arange(1, len(score) + 1, dtype=torch.float64, device=score.device)
    return hits[last_of_equals], count[last_of_equals]


def _mean_over(classes: list[int], score: Callable[[int], float]) -> float:
    if not classes:
        return math.nan
    return sum(map(score, classes)) / len(classes)


def _f1(predicted_NC: Tensor, truth_NC: Tensor) -> dict[str, float]:
    def f1(dims: tuple[int, ...]) -> Tensor:
        hits = (predicted_NC & truth_NC).sum(dims).double()
        return 2 * hits / (predicted_NC.sum(dims) + truth_NC.sum(dims)).clamp(min=1)

    support_C = truth_NC.sum(0).double()
    return {
        "f1_micro": f1((0, 1)).item(),
        "f1_macro": f1((0,)).mean().item(),
        "f1_weighted": ((f1((0,)) * support_C).sum() / support_C.sum().clamp(min=1)).item(),
        "f1_samples": f1((1,)).mean().item(),
    }
