"""Activation checkpointing: attention blocks are computed again in backward, and nothing else changes.

Here with torch's own implementation; with DeepSpeed's, as its file asks for it, on real engines in test_zero.py.
"""

import pytest
import torch
from make import DESIGNS, make_inputs, make_model
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from furnace_hpc.config.model_config import LossConfig, TaskConfig
from furnace_hpc.model.losses import total_loss

LOSS = LossConfig(alpha=0.5, beta=0.3, info_nce=1.0, unimodal=1.0, vicreg=0.1, projection_width=16)
# What lies inside the layers that are computed again: ours, and those of transformers.
INSIDE = {"AttentionBlock", "BertAttention", "ViTAttention", "ASTAttention"}


class Step:
    """Loss and gradients of one training step with dropout on, how often each kind of attention ran, and bytes kept."""

    def __init__(self, design: str, recompute: bool, dropout: float, training: bool = True) -> None:
        changes = {"text_layers": 2, "dropout": dropout} | DESIGNS[design]
        model, (inputs, lengths, present) = make_model(**changes).train(training), make_inputs()
        if recompute:
            model.checkpoint_activations(
                lambda function, *args: checkpoint(function, *args, use_reentrant=False)
            )
        self.calls: dict[str, int] = {}
        for block in model.modules():
            if type(block).__name__ in INSIDE:
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
def test_loss_and_gradients_are_the_same_and_each_blocks_forward_is_called_twice(design, dropout):
    plain, again = (
        Step(design, recompute=False, dropout=dropout),
        Step(design, recompute=True, dropout=dropout),
    )
    assert again.loss == pytest.approx(plain.loss, abs=1e-6)
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(again.gradients[name], gradient, atol=1e-6, rtol=0, msg=name)
    kinds = {"BertAttention"} | ({"AttentionBlock"} if design != "concat" else set())
    kinds |= {"ViTAttention", "ASTAttention"} if design == "transformers" else set()
    assert plain.forward_calls.keys() == kinds
    assert plain.forward_calls == plain.calls == again.forward_calls
    assert again.calls == {kind: 2 * count for kind, count in plain.calls.items()}
    assert again.calls["BertAttention"] == 4
    assert again.draw == plain.draw  # and so all that is random after it
    assert again.bytes < 0.8 * plain.bytes


def test_dropout_is_on_in_the_test_above():
    losses = [Step("transformers", recompute=True, dropout=dropout).loss for dropout in (0.0, 0.3)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_evaluation_computes_nothing_twice():
    step = Step("transformers", recompute=True, dropout=0.3, training=False)
    assert step.calls == step.forward_calls
