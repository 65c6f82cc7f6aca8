"""Heads and losses of ordinal and regression tasks."""

import pytest
import torch
from make import SHAPES, make_inputs

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.model.heads import OrdinalHead, level_log_probabilities
from furnace_hpc.model.losses import task_loss, total_loss
from furnace_hpc.model.network import FusionModel
from furnace_hpc.model.scores import mean_prediction

ORDINAL = TaskConfig(name="risk", kind="ordinal")
REGRESSION = TaskConfig(name="mood", kind="regression", weight=0.5)


def test_levels_have_continuation_ratios():
    """Logit k is that of P(level > k), given level >= k."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 3
    probability = level_log_probabilities(logits).double().exp()
    assert probability.sum(1).tolist() == pytest.approx([1] * 5, abs=1e-6)
    for k in range(3):
        above = probability[:, k + 1 :].sum(1) / probability[:, k:].sum(1)
        assert above.tolist() == pytest.approx(logits[:, k].sigmoid().tolist(), abs=1e-6)


def test_extreme_logits_have_finite_gradients():
    logits = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    log_probabilities = level_log_probabilities(logits)
    assert log_probabilities.isfinite().all()
    task_loss(log_probabilities, torch.tensor([3]), ORDINAL).backward()
    assert logits.grad.isfinite().all()


def test_losses_of_samples():
    """Ordinal: minus the log-probability of the level. Regression: mean square over targets."""
    probability = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    found = task_loss(probability.log(), torch.tensor([1, 2]), ORDINAL)
    assert found.exp().tolist() == pytest.approx([1 / 0.5, 1 / 0.1])
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0, 3]])
    assert task_loss(outputs, targets, REGRESSION).tolist() == [2.5, 4.5]


def test_a_network_with_both_tasks_learns():
    """The unimodal heads have the same form. Every head gets a gradient."""
    torch.manual_seed(0)
    loss, tasks = LossConfig(unimodal=0.3), (ORDINAL, REGRESSION)
    config = ModelConfig(width=32, feedforward=48, text_layers=1, dropout=0.0)
    outputs = {"risk": 4, "mood": 2}
    model = FusionModel(config, SHAPES, outputs, loss, frozenset({"risk"}))
    assert isinstance(model.heads["risk"], OrdinalHead)
    assert model.heads["risk"].weight.shape == (3, 32)
    labels = {"risk": torch.tensor([0, 3, 1, 2]), "mood": torch.randn(4, 2)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        output = model(*make_inputs())
        assert output["logits"]["risk"].shape == (4, 4)
        assert output["unimodal"]["risk"].shape == (4, 3, 4)
        parts = total_loss(output, labels, output["present"], loss, tasks)
        assert parts["unimodal"] > 0
        optimizer.zero_grad()
        parts["loss"].backward()
        losses.append(parts["risk/loss"].item() + 0.5 * parts["mood/loss"].item())
        optimizer.step()
    assert all(head.weight.grad.abs().sum() > 0 for head in model.heads.values())
    assert losses[-1] < 0.2 * losses[0]
    assert model(*make_inputs())["logits"]["risk"].argmax(1).tolist() == [0, 3, 1, 2]


def test_mean_over_frames():
    """Numbers are averaged, and levels by their probability."""
    frames = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mean_prediction(frames, "regression"), frames.mean(0))
    log_probabilities = frames.log_softmax(2)
    found = mean_prediction(log_probabilities, "ordinal").exp()
    assert torch.allclose(found, log_probabilities.exp().mean(0))
