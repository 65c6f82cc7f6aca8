"""Scores against scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from furnace_hpc.config.metrics import METRICS
from furnace_hpc.model.scores import (
    area_between,
    area_under_roc,
    average_precision,
    mean_prediction,
    multi_label_scores,
    single_label_scores,
    tune_threshold,
)


def multi_label(N: int = 400, C: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with ties. Class 0 is never true, and class 1 is always true."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(N, C, generator=generator) < torch.linspace(0.05, 0.6, C)).float()
    label[:, 0], label[:, 1] = 0, 1
    logits = (torch.randn(N, C, generator=generator) + label).mul(4).round() / 4
    return logits, label


def test_multi_label_scores():
    """They agree with scikit-learn and torchmetrics."""
    from sklearn import metrics as sklearn_metrics
    from torchmetrics.functional import classification as torchmetrics

    logits, label = multi_label()
    scores = multi_label_scores(logits, label, 0.4)
    probability, truth, both = logits.double().sigmoid(), label.int(), slice(2, None)
    predicted = (probability > 0.4).int()
    for name in ("micro", "macro", "weighted", "samples"):
        expected = sklearn_metrics.f1_score(truth, predicted, average=name, zero_division=0)
        assert scores[f"f1_{name}"] == pytest.approx(expected, abs=1e-12), name
    for name in ("micro", "macro", "weighted"):
        f1 = torchmetrics.multilabel_f1_score(probability, truth, 12, threshold=0.4, average=name)
        assert scores[f"f1_{name}"] == pytest.approx(f1.item(), abs=1e-6), name
    assert scores["classes_scored"] == 10
    precision = sklearn_metrics.average_precision_score(
        truth[:, both], probability[:, both], average="macro"
    )
    auc = sklearn_metrics.roc_auc_score(truth[:, both], probability[:, both], average="macro")
    assert scores["map"] == pytest.approx(precision, abs=1e-12)
    assert scores["auc"] == pytest.approx(auc, abs=1e-12)
    assert scores["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-9)
    assert scores["map"] == pytest.approx(
        torchmetrics.multilabel_average_precision(probability[:, both], truth[:, both], 10).item(),
        abs=1e-5,
    )
    assert scores["auc"] == pytest.approx(
        torchmetrics.multilabel_auroc(probability[:, both], truth[:, both], 10).item(), abs=1e-5
    )
    assert scores["loss"] == pytest.approx(
        sklearn_metrics.log_loss(label.flatten(), probability.flatten()), abs=1e-9
    )
    assert set(scores) == set(METRICS["multi_label"])


def test_single_label_scores():
    """They agree with scikit-learn and torchmetrics.

    Classes 7 to 9 are never true, and class 9 is never predicted.
    """
    from sklearn import metrics as sklearn_metrics
    from torchmetrics.functional import classification as torchmetrics

    generator = torch.Generator().manual_seed(0)
    logits, label = (
        torch.randn(300, 10, generator=generator),
        torch.randint(0, 7, (300,), generator=generator),
    )
    logits[torch.arange(300), label] += 1.0
    logits[:, 9] = -50
    scores, predicted = single_label_scores(logits, label), logits.argmax(1)
    assert scores["accuracy"] == sklearn_metrics.accuracy_score(label, predicted)
    probability = logits.double().softmax(1)
    loss = sklearn_metrics.log_loss(label, probability, labels=range(10))
    assert scores["loss"] == pytest.approx(loss, rel=1e-9)
    for name in ("macro", "weighted"):
        expected = sklearn_metrics.f1_score(label, predicted, average=name, zero_division=0)
        assert scores[f"f1_{name}"] == pytest.approx(expected, abs=1e-12)
        assert scores[f"f1_{name}"] == pytest.approx(
            torchmetrics.multiclass_f1_score(logits, label, 10, average=name).item(), abs=1e-6
        )
    assert set(scores) == set(METRICS["single_label"])


def test_equal_scores():
    """They are one step of the precision-recall curve, and count one half in the AUC."""
    truth = torch.tensor([True, False, True, False])
    assert area_under_roc(torch.zeros(4), truth) == 0.5
    assert average_precision(torch.zeros(4), truth) == 0.5
    assert area_under_roc(torch.tensor([2.0, 1.0, 1.0, 0.0]), truth) == 0.875


@pytest.mark.parametrize("decimals", [0, 1, 3, 9])
@pytest.mark.parametrize("strange", ["none", "infinite", "nan in one", "nan in both"])
def test_area_between_has_the_same_bits(decimals, strange):
    """The short way gives what the sort of all scores gives, with ties and without."""
    generator = torch.Generator().manual_seed(decimals)
    for N, M in [(1, 1), (1, 5), (7, 3), (40, 1560), (300, 20_000)]:
        positive = (torch.randn(N, generator=generator).double() + 0.7).round(decimals=decimals)
        negative = torch.randn(M, generator=generator).double().round(decimals=decimals)
        if strange == "infinite":
            positive[0], negative[0] = math.inf, -math.inf
        if strange.startswith("nan"):
            negative[0] = math.nan
        if strange == "nan in both":
            positive[-1] = math.nan
        truth = torch.cat([torch.ones(N), torch.zeros(M)]).bool()
        expected = area_under_roc(torch.cat([positive, negative]), truth)
        assert area_between(positive, negative).hex() == expected.hex()


@pytest.mark.parametrize("seed", range(3))
def test_threshold_has_best_micro_f1(seed):
    logits, label = multi_label(60, 4, seed)
    threshold = tune_threshold(logits, label)
    best = multi_label_scores(logits, label, threshold)["f1_micro"]
    candidates = [*np.unique(logits.double().sigmoid().numpy()), 0.0, 0.5]
    assert best >= max(multi_label_scores(logits, label, t)["f1_micro"] for t in candidates) - 1e-12
    assert 0 < threshold < 1


def test_threshold_lies_between_probabilities():
    """It lies below all probabilities if all labels are true."""
    logits = torch.tensor([[2.0], [1.0], [-1.0], [-2.0]])
    low, high = torch.tensor([-1.0, 1.0]).double().sigmoid().tolist()
    assert tune_threshold(logits, torch.tensor([[1.0], [1], [0], [0]])) == pytest.approx(
        (low + high) / 2
    )
    assert tune_threshold(logits, torch.ones(4, 1)) < logits.sigmoid().min()


def test_ranking_scores_without_a_scored_class():
    """Without a class that has positives and negatives they are NaN, and classes_scored is 0."""
    scores = multi_label_scores(torch.randn(5, 2), torch.tensor([[1.0, 0.0]]).repeat(5, 1), 0.5)
    assert scores["classes_scored"] == 0
    assert math.isnan(scores["d_prime"])  # not infinite
    assert math.isnan(scores["map"])
    assert math.isnan(scores["auc"])
    perfect = multi_label_scores(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [0.0]]), 0.5)
    assert (perfect["map"], perfect["auc"], perfect["d_prime"]) == (1.0, 1.0, math.inf)


def test_mean_over_batches_is_another_number():
    logits, label = multi_label()
    parts = [
        multi_label_scores(a, b, 0.4)["f1_macro"]
        for a, b in zip(logits.split(4), label.split(4), strict=True)
    ]
    assert abs(np.mean(parts) - multi_label_scores(logits, label, 0.4)["f1_macro"]) > 0.01


def test_mean_prediction():
    """It has the mean of the probabilities, and its logits are never infinite."""
    logits = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(0)).mul(3)
    torch.testing.assert_close(
        mean_prediction(logits, "multi_label").sigmoid(), logits.sigmoid().mean(0)
    )
    torch.testing.assert_close(
        mean_prediction(logits, "single_label").softmax(1), logits.softmax(2).mean(0)
    )
    torch.testing.assert_close(mean_prediction(logits[:1], "multi_label"), logits[0])
    sure = torch.tensor([[[200.0, -200.0]], [[190.0, -190.0]]])
    found = mean_prediction(sure, "multi_label")[0]
    assert found.isfinite().all()
    assert 190 < found[0] < 191  # 1 - p is half that of the less certain prediction
    absent = torch.full((2, 1, 3), math.nan)
    assert mean_prediction(absent, "multi_label").isnan().all()
    assert mean_prediction(absent, "single_label").isnan().all()
