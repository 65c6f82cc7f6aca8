"""Scores of regression and ordinal tasks against scikit-learn, scipy and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.regression import concordance_corrcoef

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.metrics import METRICS, metric_direction, split_target
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.config.train_config import check_metric
from furnace_hpc.model.target_scores import (
    ordinal_scores,
    quadratic_kappa,
    regression_scores,
    scores_of_targets,
)
from furnace_hpc.tables.metric import Metric

EXACT = 1e-12


def numbers(N: int = 500, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three targets of very different size and place. The last has many ties."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    predicted = target + torch.randn(N, 3, generator=generator, dtype=torch.float64)
    scale = torch.tensor([1.0, 1e6, 3.0], dtype=torch.float64)
    target, predicted = target * scale + 100 * scale, predicted * scale + 100.3 * scale
    return predicted.round(), target.round()


def test_regression_scores():
    """They agree with scikit-learn, scipy and torchmetrics."""
    predicted, target = numbers()
    scores = regression_scores(predicted, target)
    one, other = target.numpy(), predicted.numpy()
    expected = {
        "mae": sklearn_metrics.mean_absolute_error(one, other),
        "rmse": sklearn_metrics.root_mean_squared_error(one, other),
        "r2": sklearn_metrics.r2_score(one, other),
        "pearson": np.mean([stats.pearsonr(one[:, t], other[:, t])[0] for t in range(3)]),
        "spearman": np.mean([stats.spearmanr(one[:, t], other[:, t])[0] for t in range(3)]),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=EXACT), name
    assert scores.keys() | {"loss"} == set(METRICS["regression"])


def test_scores_of_targets():
    """They agree with scikit-learn and scipy, and their mean is the score of the task."""
    predicted, target = numbers()
    names = ("valence", "price (EUR)", "a/b@c:d")
    found = scores_of_targets(predicted, target, names)
    keys = ("valence", "price_(EUR)", "a_b_c_d")
    for t, key in enumerate(keys):
        one, other = target[:, t].numpy(), predicted[:, t].numpy()
        expected = {
            "mae": sklearn_metrics.mean_absolute_error(one, other),
            "rmse": sklearn_metrics.root_mean_squared_error(one, other),
            "r2": sklearn_metrics.r2_score(one, other),
            "pearson": stats.pearsonr(one, other)[0],
            "spearman": stats.spearmanr(one, other)[0],
        }
        for name, value in expected.items():
            assert found[f"{name}:{key}"] == pytest.approx(value, rel=EXACT), (name, key)
    for name, value in regression_scores(predicted, target).items():
        assert value == pytest.approx(np.mean([found[f"{name}:{key}"] for key in keys]), rel=EXACT)
    assert len(found) == len(keys) * (len(METRICS["regression"]) - 1)
    assert scores_of_targets(predicted[:, :1], target[:, :1], names[:1]) == {}


def test_a_metric_of_a_target_is_a_metric():
    """Its direction and its limits are those of the metric of all targets."""
    tasks = (TaskConfig(name="mood", kind="regression"), TaskConfig(name="digit"))
    name = "test/mood/pearson:very_happy"
    check_metric(name, tasks)
    check_metric(f"{name}@text", tasks, ("text", "image"))
    assert (metric_direction(name), metric_direction("test/mood/mae:a")) == ("max", "min")
    assert Metric(f"{name}@text", "max").limits == (-1, 1)
    assert split_target(f"{name}@text") == ("test/mood/pearson@text", "very_happy")
    for wrong in (
        "test/mood/loss:a",
        "test/digit/accuracy:a",
        "test/mood/mea:a",
        "test/mood/mae@a:b",
    ):
        with pytest.raises(ConfigError, match="unknown metric"):
            check_metric(wrong, tasks, ("text",))


def test_concordance():
    """It agrees with the formula of Lin (1989), and with torchmetrics up to its N - 1."""
    predicted, target = numbers()
    expected = []
    for one, other in zip(predicted.T.numpy(), target.T.numpy(), strict=True):
        difference = one.mean() - other.mean()
        covariance = np.cov(one, other, ddof=0)
        expected.append(2 * covariance[0, 1] / (np.trace(covariance) + difference**2))
    found = regression_scores(predicted, target)["ccc"]
    assert found == pytest.approx(np.mean(expected), rel=EXACT)
    peer = concordance_corrcoef(predicted, target).mean().item()
    assert found == pytest.approx(peer, abs=2 / len(target))


def test_each_target_counts_alone():
    predicted, target = numbers()
    whole = regression_scores(predicted, target)
    alone = [regression_scores(predicted[:, [t]], target[:, [t]]) for t in range(3)]
    for name, value in whole.items():
        assert value == pytest.approx(np.mean([scores[name] for scores in alone]), rel=EXACT)


def test_a_constant_has_no_correlation():
    """R2 is that of scikit-learn, correlations are NaN as in scipy."""
    ramp = torch.arange(5.0, dtype=torch.float64).unsqueeze(1)
    flat = torch.full_like(ramp, 0.1)
    scores = regression_scores(flat, ramp)
    assert math.isnan(scores["pearson"])
    assert math.isnan(scores["spearman"])
    assert scores["ccc"] == 0
    assert scores["r2"] == pytest.approx(sklearn_metrics.r2_score(ramp, flat), rel=EXACT)
    for predicted in (flat, ramp):
        expected = sklearn_metrics.r2_score(flat, predicted)
        assert regression_scores(predicted, flat)["r2"] == expected
    assert math.isnan(regression_scores(flat, flat)["ccc"])
    with np.errstate(all="ignore"):
        assert math.isnan(stats.pearsonr(flat[:, 0], ramp[:, 0])[0])


def test_one_sample_has_only_errors():
    scores = regression_scores(torch.tensor([[2.0]]), torch.tensor([[5.0]]))
    assert (scores["mae"], scores["rmse"]) == (3, 3)
    assert all(math.isnan(scores[name]) for name in ("r2", "pearson", "spearman"))


def levels(N: int = 300, K: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and labels. Level 3 is neither true nor predicted."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, K, (N,), generator=generator)
    label[label == 3] = 4
    logits = torch.randn(N, K, generator=generator) - (torch.arange(K) - label.unsqueeze(1)).abs()
    logits[:, 3] = -50
    return logits.double().log_softmax(1), label


def test_ordinal_scores():
    """They agree with scikit-learn, also if a level does not occur."""
    logits, label = levels()
    scores, predicted = ordinal_scores(logits, label), logits.argmax(1)
    kappa = sklearn_metrics.cohen_kappa_score(
        label, predicted, weights="quadratic", labels=np.arange(5)
    )
    assert scores["qwk"] == pytest.approx(kappa, rel=EXACT)
    error = sklearn_metrics.mean_absolute_error(label, predicted)
    assert scores["mae"] == pytest.approx(error, rel=EXACT)
    assert scores["accuracy"] == pytest.approx((predicted == label).double().mean().item())
    log_loss = sklearn_metrics.log_loss(label, logits.exp(), labels=np.arange(5))
    assert scores["loss"] == pytest.approx(log_loss, rel=1e-9)
    assert tuple(scores) == METRICS["ordinal"]


def test_kappa_of_one_level_is_undefined():
    same = torch.full((7,), 2)
    assert math.isnan(quadratic_kappa(same, same, 5))
    opposite = torch.tensor([0, 4, 0, 4])
    assert quadratic_kappa(4 - opposite, opposite, 5) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("mae", "min"), ("rmse", "min"), ("r2", "max"), ("ccc", "max"), ("qwk", "max")],
)
def test_directions(metric, direction):
    assert metric_direction(f"val/mood/{metric}") == direction
    assert metric_direction(f"test/mood/{metric}@text+image") == direction
