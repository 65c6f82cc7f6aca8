"""Class weights and focal loss of tasks."""

import numpy as np
import pytest
import torch
from make import make_config
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from furnace_hpc.config.identity import identity_hash
from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.data.loading.targets import balanced_weights
from furnace_hpc.model.losses import task_loss, total_loss

LABELS = np.array([0] * 6 + [1] * 3 + [3], np.int16)
LOGITS = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


def test_balanced_weights():
    """They agree with scikit-learn. A class that does not occur is not counted."""
    weights = balanced_weights(LABELS, 4)
    present = np.array([0, 1, 3])
    expected = compute_class_weight("balanced", classes=present, y=LABELS)
    assert weights[present].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weights[2] == 0
    assert weights[LABELS.astype(int)].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["single_label", "ordinal"])
def test_weights_multiply_the_loss_of_a_sample(kind):
    """So the mean over two halves is the loss of the whole, in every split into micro-batches."""
    task = TaskConfig(name="digit", kind=kind, class_weights="balanced")
    labels = torch.from_numpy(LABELS).long()
    weights = {"digit": balanced_weights(LABELS, 4)}
    logits = LOGITS.log_softmax(1)
    output = {"logits": {"digit": logits}, "features": torch.zeros(10, 1, 3)}
    present = torch.ones(10, 1, dtype=torch.bool)

    def loss(rows):
        part = {"logits": {"digit": logits[rows]}, "features": output["features"][rows]}
        own = {"digit": labels[rows]}
        terms = total_loss(part, own, present[rows], LossConfig(), (task,), class_weights=weights)
        return terms["loss"].item()

    plain = functional.nll_loss(logits, labels, reduction="none")
    expected = (plain * weights["digit"][labels]).mean().item()
    assert loss(slice(0, 10)) == pytest.approx(expected, rel=1e-6)
    assert (loss(slice(0, 5)) + loss(slice(5, 10))) / 2 == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(plain.mean().item(), rel=1e-3)


def test_focal_loss():
    """It is (1 - p)^gamma times -log p, of the class or of each class."""
    labels = torch.from_numpy(LABELS).long()
    probability = LOGITS.softmax(1)[torch.arange(10), labels]
    for gamma in (0.5, 2.0):
        found = task_loss(LOGITS, labels, TaskConfig(name="a", focal_gamma=gamma))
        expected = -((1 - probability) ** gamma) * probability.log()
        assert torch.allclose(found, expected, atol=1e-6)
        truth = functional.one_hot(labels, 4).float()
        task = TaskConfig(name="a", kind="multi_label", focal_gamma=gamma)
        p = torch.where(truth > 0, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
        expected = (-((1 - p) ** gamma) * p.log()).mean(1)
        assert torch.allclose(task_loss(LOGITS, truth, task), expected, atol=1e-6)


def test_focal_gradient_of_a_certain_answer():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    task_loss(logits, labels, TaskConfig(name="a", focal_gamma=0.5)).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().sum() > 1


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"kind": "multi_label", "class_weights": "balanced"}, "and task 'a' is multi_label"),
        ({"kind": "regression", "class_weights": "balanced"}, "and task 'a' is regression"),
        ({"kind": "ordinal", "focal_gamma": 2.0}, "and task 'a' is ordinal. Remove it"),
    ],
)
def test_keys_that_do_not_fit_the_kind(settings, wanted):
    with pytest.raises(ValidationError, match=wanted):
        TaskConfig(name="a", **settings)


def test_defaults_are_not_part_of_the_identity():
    """A changed key makes another run."""

    def digits(**changes) -> str:
        return identity_hash(make_config(tasks=[{"name": "digit"} | changes]), "data")

    assert digits() == digits(class_weights=None, focal_gamma=0.0)
    assert len({digits(), digits(class_weights="balanced"), digits(focal_gamma=1.0)}) == 3
