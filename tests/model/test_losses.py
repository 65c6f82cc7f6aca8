"""Losses: means over samples, and comparisons with formulas and hand-made values."""

import math

import numpy as np
import pytest
import torch

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.model.losses import (
    consistency,
    feature_norm,
    info_nce,
    task_loss,
    total_loss,
    unimodal_loss,
    vicreg,
)


def batch(B: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, 3, 8, generator=generator)
    output = {"logits": {"digit": torch.randn(B, 10, generator=generator)}, "features": features}
    labels = {"digit": torch.randint(0, 10, (B,), generator=generator)}
    present = torch.rand(B, 3, generator=generator) > 0.3
    present[:, 0] = True
    return output, labels, present


def test_batch_loss_is_mean_over_samples():
    """All parts except InfoNCE and VICReg, which compare samples."""
    output, labels, present = batch(16)
    generator = torch.Generator().manual_seed(2)
    output["unimodal"] = {
        name: torch.randn(16, 3, C, generator=generator) for name, C in (("digit", 10), ("tags", 4))
    }
    output["logits"]["tags"] = torch.randn(16, 4, generator=generator)
    labels["tags"] = (torch.rand(16, 4, generator=generator) > 0.5).float()
    tasks = (TaskConfig(name="digit", weight=2.0), TaskConfig(name="tags", kind="multi_label"))
    config = LossConfig(alpha=0.5, beta=0.3, unimodal=0.7)
    whole = total_loss(output, labels, present, config, tasks)
    alone = []
    for i in range(16):
        row = {
            "features": output["features"][[i]],
            "logits": {name: part[[i]] for name, part in output["logits"].items()},
            "unimodal": {name: part[[i]] for name, part in output["unimodal"].items()},
        }
        label = {name: part[[i]] for name, part in labels.items()}
        alone.append(total_loss(row, label, present[[i]], config, tasks))
    for name, value in whole.items():
        torch.testing.assert_close(
            value, torch.stack([parts[name] for parts in alone]).mean(), msg=name
        )
    by_hand = (
        2.0 * whole["digit/loss"]
        + whole["tags/loss"]
        + 0.5 * whole["consistency"]
        + 0.3 * whole["norm"]
    )
    torch.testing.assert_close(whole["loss"], by_hand + 0.7 * whole["unimodal"])


def test_norm_does_not_depend_on_batch_size():
    """The article's norm of the whole batch grows with the batch."""
    features = torch.randn(8, 3, 256, generator=torch.Generator().manual_seed(0))
    many = features.repeat(16, 1, 1)
    present, present_many = torch.ones(8, 3).bool(), torch.ones(128, 3).bool()
    torch.testing.assert_close(feature_norm(features, present), feature_norm(many, present_many))
    # the article's form: 4 times for 16 times the batch
    assert torch.norm(many) / torch.norm(features) > 3.9


def test_consistency_of_present_pairs():
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]]])
    pairs = [2.0, 8.0, 10.0]  # mean over width of (t-i)^2, (t-a)^2, (i-a)^2
    assert consistency(features, torch.tensor([[True, True, True]])).item() == pytest.approx(
        sum(pairs) / 3
    )
    assert consistency(features, torch.tensor([[True, False, True]])).item() == 8.0
    assert consistency(features, torch.tensor([[False, False, True]])).item() == 0.0


def test_norm_of_present_modalities():
    """The mean is over a sample's present modalities, then over samples."""
    features = torch.tensor(
        [[[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]]]
    )
    present = torch.tensor([[True, True, False], [True, False, False]])
    assert feature_norm(features, present).item() == pytest.approx(((5 + 10) / 2 + 2) / 2)


def test_norm_gradient_of_absent_modality_is_zero():
    features = torch.zeros(2, 3, 4, requires_grad=True)
    feature_norm(features, torch.tensor([[True, True, False]] * 2)).backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_multi_label_loss_is_binary_cross_entropy():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    label = (torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    task = TaskConfig(name="genre", kind="multi_label")
    p = logits.sigmoid()
    by_hand = -(label * p.log() + (1 - label) * (1 - p).log()).mean(1)
    torch.testing.assert_close(task_loss(logits, label, task), by_hand)
    output = {"logits": {"genre": logits}, "features": torch.zeros(6, 1, 2)}
    whole = total_loss(output, {"genre": label}, torch.ones(6, 1).bool(), LossConfig(), (task,))
    torch.testing.assert_close(whole["loss"], by_hand.mean())


def test_joint_tasks_add_up_with_their_weights():
    output, labels, present = batch(8)
    output["logits"]["parity"], labels["parity"] = torch.randn(8, 2), labels["digit"] % 2
    tasks = (TaskConfig(name="digit"), TaskConfig(name="parity", weight=0.25))
    parts = total_loss(output, labels, present, LossConfig(), tasks)
    torch.testing.assert_close(parts["loss"], parts["digit/loss"] + 0.25 * parts["parity/loss"])


def test_unimodal_loss_of_present_modalities():
    logits = {"digit": torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))}
    label, present = (
        {"digit": torch.tensor([3, 4])},
        torch.tensor([[True, False, True], [False, True, False]]),
    )
    each = [
        torch.nn.functional.cross_entropy(logits["digit"][row, m][None], label["digit"][row][None])
        for row, m in ((0, 0), (0, 2), (1, 1))
    ]
    got = unimodal_loss(logits, label, present, (TaskConfig(name="digit"),))
    torch.testing.assert_close(got, ((each[0] + each[1]) / 2 + each[2]) / 2)


def projections(B: int, M: int = 3, seed: int = 0) -> torch.Tensor:
    x = torch.randn(B, M, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def test_info_nce_of_samples_with_both():
    x, scale = projections(5), torch.tensor([7.0])
    present = torch.ones(5, 3).bool()
    present[4, 2] = False

    def pair(m: int, n: int, rows: list[int]) -> torch.Tensor:
        logits, target = 7 * x[rows, m] @ x[rows, n].T, torch.arange(len(rows))
        both = torch.nn.functional.cross_entropy
        return (both(logits, target) + both(logits.T, target)) / 2

    by_hand = (
        pair(0, 1, [0, 1, 2, 3, 4]) + pair(0, 2, [0, 1, 2, 3]) + pair(1, 2, [0, 1, 2, 3])
    ) / 3
    torch.testing.assert_close(info_nce(x, present, scale), by_hand)


def test_info_nce_without_pairs_is_zero():
    """No two samples have both modalities. The gradient is zero and finite."""
    x, scale = projections(4).requires_grad_(), torch.tensor([100.0])
    present = torch.tensor(
        [[True, False, False], [False, True, False], [False, False, True], [True, True, False]]
    )
    loss = info_nce(x, present, scale)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_info_nce_of_collapsed_embeddings_is_chance():
    x = torch.ones(16, 2, 4) / 2
    assert info_nce(x, torch.ones(16, 2).bool(), torch.tensor([14.0])).item() == pytest.approx(
        math.log(16)
    )


def test_info_nce_mean_over_shards_equals_whole():
    """The shards have different numbers of pairs."""
    x, scale = projections(12), torch.tensor([5.0])
    present = torch.ones(12, 3).bool()
    present[:5, 1] = present[7, 0] = False
    whole = info_nce(x, present, scale)
    shards = []
    for rank in range(3):
        rows = slice(4 * rank, 4 * rank + 4)

        def gather(tensor: torch.Tensor, first: int = 4 * rank) -> tuple[torch.Tensor, int]:
            return (x if tensor.shape[-1] == 8 else present.float()), first

        shards.append(info_nce(x[rows], present[rows], scale, gather))
    torch.testing.assert_close(torch.stack(shards).mean(), whole)


VICREG = LossConfig(vicreg=1.0)


def vicreg_by_hand(a: np.ndarray, b: np.ndarray, config: LossConfig = VICREG) -> float:
    """Equations 1 to 6 of Bardes, Ponce and LeCun 2022, with the mean of algorithm 1."""

    def v(z: np.ndarray) -> float:
        deviations = [math.sqrt(np.var(column, ddof=1) + 1e-4) for column in z.T]
        return sum(max(0.0, config.vicreg_gamma - s) for s in deviations) / len(deviations)

    def c(z: np.ndarray) -> float:
        mean = sum(z) / len(z)
        covariance = sum(np.outer(row - mean, row - mean) for row in z) / (len(z) - 1)
        squares = covariance**2
        return (squares.sum() - np.trace(squares)) / z.shape[1]

    s = sum(float(np.mean((x - y) ** 2)) for x, y in zip(a, b, strict=True)) / len(a)
    spread = config.vicreg_variance * (v(a) + v(b)) + config.vicreg_covariance * (c(a) + c(b))
    return config.vicreg_invariance * s + spread


def features(B: int, M: int = 3, P: int = 8, seed: int = 0) -> torch.Tensor:
    """Draw features with deviations from 0.1 to 2, so that some are below gamma."""
    scale = torch.linspace(0.1, 2, P, dtype=torch.float64)
    x = (
        torch.randn(B, M, P, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        * scale
    )
    return x + 0.5 * x.roll(1, dims=2)  # neighbouring features are correlated


def test_vicreg_has_the_papers_defaults():
    config = LossConfig()
    weights = (
        config.vicreg_invariance,
        config.vicreg_variance,
        config.vicreg_covariance,
        config.vicreg_gamma,
    )
    assert (config.vicreg, *weights) == (0.0, 25.0, 25.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "vicreg_invariance": 3.0,
            "vicreg_variance": 0.5,
            "vicreg_covariance": 7.0,
            "vicreg_gamma": 1.4,
        },
    ],
)
def test_vicreg_is_its_papers_formula(changes):
    x, config = features(6), LossConfig(vicreg=1.0, **changes)
    present = torch.ones(6, 3).bool()
    present[4, 2] = present[0, 1] = False
    z = x.numpy()
    pairs = [
        vicreg_by_hand(z[1:, 0], z[1:, 1], config),
        vicreg_by_hand(z[[0, 1, 2, 3, 5], 0], z[[0, 1, 2, 3, 5], 2], config),
        vicreg_by_hand(z[[1, 2, 3, 5], 1], z[[1, 2, 3, 5], 2], config),
    ]
    assert vicreg(x, present, config).item() == pytest.approx(sum(pairs) / 3, rel=1e-5)


def test_vicreg_by_numbers():
    """Two samples of two features: s = 1. The features of a vary and correlate. b is constant."""
    a, b = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.zeros(2, 2)
    value = vicreg(torch.stack([a, b], dim=1), torch.ones(2, 2).bool(), VICREG).item()
    # v(a) = 0 (variance 2), v(b) = 1 - 0.01; c(a) = (2^2 + 2^2) / 2 = 4, c(b) = 0
    assert value == pytest.approx(25 * 1 + 25 * 0.99 + 4)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_vicreg_of_collapsed_features_is_finite(rows, value):
    x = torch.full((rows, 3, 8), value, requires_grad=True)
    loss = vicreg(x, torch.ones(rows, 3).bool(), VICREG)
    loss.backward()
    assert loss.item() == pytest.approx(25 * 2 * 0.99 if rows > 1 else 0.0)
    assert torch.isfinite(x.grad).all()


def test_vicreg_of_one_sample_is_its_invariance():
    x = features(1).float().requires_grad_()
    loss = vicreg(x, torch.ones(1, 3).bool(), VICREG)
    loss.backward()
    torch.testing.assert_close(loss, 25 * consistency(x, torch.ones(1, 3).bool()))
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0


def test_vicreg_is_zero_where_no_sample_has_both():
    x = features(3).float().requires_grad_()
    loss = vicreg(x, torch.eye(3).bool(), VICREG)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_vicreg_ignores_absent_modalities():
    x, present = features(6).float(), torch.ones(6, 3).bool()
    present[2, 1] = False
    x.requires_grad_()
    before = vicreg(x, present, VICREG)
    before.backward()
    assert torch.equal(x.grad[2, 1], torch.zeros(8))
    with torch.no_grad():
        x[2, 1] = 1e3
    torch.testing.assert_close(vicreg(x, present, VICREG), before)


def test_vicreg_of_shards_is_that_of_the_whole():
    x, present = features(12), torch.ones(12, 3).bool()
    present[:5, 1] = present[7, 0] = False
    whole = vicreg(x, present, VICREG)
    shards = []
    for rank in range(3):
        rows = slice(4 * rank, 4 * rank + 4)

        def gather(tensor: torch.Tensor, first: int = 4 * rank) -> tuple[torch.Tensor, int]:
            return (x.float() if tensor.shape[-1] == 8 else present.float()), first

        shards.append(vicreg(x[rows], present[rows], VICREG, gather))
    torch.testing.assert_close(torch.stack(shards).mean(), whole)


def test_vicreg_in_fp32_and_weighted():
    output, labels, present = batch(6)
    output["expanded"] = features(6).bfloat16()
    config = LossConfig(vicreg=0.5)
    parts = total_loss(output, labels, present, config, (TaskConfig(name="digit"),))
    assert parts["vicreg"].dtype == torch.float32
    torch.testing.assert_close(parts["vicreg"], vicreg(output["expanded"].float(), present, config))
    torch.testing.assert_close(parts["loss"], parts["digit/loss"] + 0.5 * parts["vicreg"])
    assert "vicreg" not in total_loss(
        output, labels, present, LossConfig(), (TaskConfig(name="digit"),)
    )
