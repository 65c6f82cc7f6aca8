"""Activation checkpointing: attention blocks are recomputed in backward, and nothing else changes.

This file uses torch's own implementation. tests/engine/test_zero.py uses DeepSpeed's.
"""

import pytest
import torch
from make import DESIGNS, make_inputs, make_model
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.model.losses import total_loss

LOSS = LossConfig(alpha=0.5, beta=0.3, info_nce=1.0, unimodal=1.0, vicreg=0.1, projection_width=16)
# Modules inside the recomputed layers of the project and of transformers.
RECOMPUTED = {"AttentionBlock", "BertAttention", "ViTAttention", "ASTAttention"}


class Step:
    """One training step: loss, gradients, calls of each kind of attention, and kept bytes."""

    def __init__(self, design: str, recompute: bool, dropout: float, training: bool = True) -> None:
        changes = {"text_layers": 2, "dropout": dropout} | DESIGNS[design]
        model, (inputs, lengths, present) = make_model(**changes).train(training), make_inputs()
        if recompute:
            model.checkpoint_activations(
                lambda function, *args: checkpoint(function, *args, use_reentrant=False)
            )
        self.calls: dict[str, int] = {}
        for block in model.modules():
            if type(block).__name__ in RECOMPUTED:
                block.register_forward_pre_hook(self._count)
        self.bytes = 0
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            output = model(inputs, lengths, present)
        parts = total_loss(
            output, {"digit": torch.arange(4)}, present, LOSS, (TaskConfig(name="digit"),)
        )
        self.forward_calls = dict(self.calls)
        parts["loss"].backward()
        self.loss = parts["loss"].item()
        self.gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        self.draw = torch.rand(1).item()

    def _count(self, module: torch.nn.Module, args: object) -> None:
        kind = type(module).__name__
        self.calls[kind] = self.calls.get(kind, 0) + 1

    def _keep(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.nbytes
        return tensor


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("design", ["concat", "cross_attention", "bottleneck", "transformers"])
def test_recompute_gives_same_loss_and_gradients(design, dropout):
    """Each block's forward is called twice, and fewer bytes are kept."""
    plain = Step(design, recompute=False, dropout=dropout)
    again = Step(design, recompute=True, dropout=dropout)
    assert again.loss == pytest.approx(plain.loss, abs=1e-6)
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(again.gradients[name], gradient, atol=1e-6, rtol=0, msg=name)
    kinds = {"BertAttention"}
    if design != "concat":
        kinds |= {"AttentionBlock"}
    if design == "transformers":
        kinds |= {"ViTAttention", "ASTAttention"}
    assert plain.forward_calls.keys() == kinds
    assert plain.forward_calls == plain.calls == again.forward_calls
    assert again.calls == {kind: 2 * count for kind, count in plain.calls.items()}
    assert again.calls["BertAttention"] == 4
    assert again.draw == plain.draw  # so later random numbers are the same too
    assert again.bytes < 0.8 * plain.bytes


def test_dropout_is_on_in_the_test_above():
    losses = [Step("transformers", recompute=True, dropout=dropout).loss for dropout in (0.0, 0.3)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_evaluation_recomputes_nothing():
    step = Step("transformers", recompute=True, dropout=0.3, training=False)
    assert step.calls == step.forward_calls
