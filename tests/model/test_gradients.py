"""Which parameters get a gradient, with all modalities and without one of them.

A modality owns its encoder (with its projection to the network's width), its norm, its InfoNCE
projection, its VICReg expander, its unimodal heads, and parts of the fusion, which `own` lists. If
the modality is absent, these get no gradient. All other parameters are shared and get one. Shared
are also the parameters that replace an absent modality: the learnt vector and its columns (concat),
and the factors of the constant 1 in [1; x_m] (low_rank).
"""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from make import DESIGNS, SHAPES, make_inputs, make_model
from torch import Tensor
from transformers import ASTConfig, BertConfig, ViTConfig

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.model.attention import CrossAttentionFusion
from furnace_hpc.model.fusion import ConcatFusion, GatedFusion, LowRankFusion
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

NAMES, WIDTH = ("text", "image", "audio"), 32
LOSS = LossConfig(alpha=0.5, beta=0.3, info_nce=1.0, unimodal=1.0, vicreg=0.1, projection_width=16)
# A shift of all keys does not change the softmax, so the gradient of their bias is rounding.
KEY_BIAS = re.compile(r"(key|k_proj)\.bias$")
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES = {
    "text": BertConfig(vocab_size=20, **SIZES),
    "image": ViTConfig(image_size=32, patch_size=8, num_channels=1, **SIZES),
    "audio": ASTConfig(
        num_mel_bins=40, max_length=32, patch_size=8, time_stride=8, frequency_stride=8, **SIZES
    ),
}
# of another width
PROJECTED = {f"{name}_weights": "elsewhere" for name in NAMES} | DESIGNS["transformers"]

design = pytest.mark.parametrize(
    "changes", [*DESIGNS.values(), PROJECTED], ids=[*DESIGNS, "projected"]
)
Gradients = dict[str, Tensor]


def own(model: FusionModel, m: int) -> list[tuple[str, Any]]:
    """The parameters that modality m owns, with the index of its part in each."""
    prefixes = [
        rf"(encoders|norms)\.{NAMES[m]}\.",
        rf"(projections\.layers|expanders)\.{m}\.",
        rf"unimodal\.digit\.{m}\.",
    ]
    # gated; bottleneck's blocks
    prefixes += [rf"fusion\.transforms\.{m}\.", rf"fusion\.layers\.\d+\.{m}\."]
    if isinstance(model.fusion, ConcatFusion):
        prefixes = prefixes[:3]
    whole = re.compile("|".join(prefixes))
    parts: list[tuple[str, Any]] = [
        (name, ...) for name, _ in model.named_parameters() if whole.match(name)
    ]
    mine = slice(m * WIDTH, (m + 1) * WIDTH)
    match model.fusion:
        case ConcatFusion():
            # its presence bit
            parts.append(("fusion.layers.0.weight", (slice(None), 3 * WIDTH + m)))
        case GatedFusion():
            parts += [("fusion.gate.weight", mine), ("fusion.gate.weight", (slice(None), mine))]
        case LowRankFusion():
            parts.append(("fusion.factor_MRDD", (m, slice(None), slice(1, None))))
        case CrossAttentionFusion():
            parts.append(("fusion.modality_MD", m))
    return parts


def network(changes: dict[str, Any]) -> FusionModel:
    shapes = SHAPES
    if "text_weights" in changes:
        shapes = replace(
            SHAPES, architectures={name: part.to_dict() for name, part in ARCHITECTURES.items()}
        )
    return make_model(shapes, **changes).train()


def gradients(model: FusionModel, absent: int | None = None) -> Gradients:
    """Gradients of the sum of all losses. The inputs of an absent modality are garbage."""
    inputs, lengths, present = make_inputs()
    if absent is not None:
        name = NAMES[absent]
        present[:, absent] = False
        inputs[name] = torch.full_like(inputs[name], 19 if name == "text" else float("nan"))
        if name in lengths:
            lengths[name] = torch.zeros_like(lengths[name])
    model.zero_grad()
    output = model(inputs, lengths, present)
    total_loss(output, {"digit": torch.arange(4)}, present, LOSS, (TaskConfig(name="digit"),))[
        "loss"
    ].backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    # every parameter takes part, even if its gradient is zero
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items()}


def largest(gradient: Tensor) -> float:
    return gradient.abs().max().item()


@design
def test_every_parameter_gets_a_gradient(changes):
    """All modalities are present."""
    model = network(changes)
    found = gradients(model)
    for name, gradient in found.items():
        if name == "fusion.absent_MD":  # nothing is absent
            assert largest(gradient) == 0.0
        elif KEY_BIAS.search(name):
            assert largest(gradient) < 1e-6, name
        else:
            assert largest(gradient) > 0.0, name
    for name, where in (
        part for m in range(3) for part in own(model, m) if not KEY_BIAS.search(part[0])
    ):
        assert largest(found[name][where]) > 0.0, (name, where)


@design
@pytest.mark.parametrize("absent", range(3), ids=NAMES)
def test_gradients_without_one_modality(absent, changes):
    """The absent modality's own parameters get exactly zero. All others get a gradient."""
    model = network(changes)
    found, mine = gradients(model, absent), own(model, absent)
    assert {"encoders", "norms", "projections", "expanders", "unimodal"} <= {
        name.split(".")[0] for name, _ in mine
    }
    for name, where in mine:
        assert torch.equal(found[name][where], torch.zeros_like(found[name][where])), (name, where)
    entirely = {name for name, where in mine if where is ...}
    for name, gradient in found.items():
        if name not in entirely and not KEY_BIAS.search(name):
            assert largest(gradient) > 0.0, name
    for name, where in (part for m in range(3) if m != absent for part in own(model, m)):
        if not KEY_BIAS.search(name):
            assert largest(found[name][where]) > 0.0, (name, where)
    # only the vector that replaces the absent modality
    if isinstance(model.fusion, ConcatFusion):
        assert (found["fusion.absent_MD"].abs().sum(1) > 0).nonzero().flatten().tolist() == [absent]


SHARED = {
    "concat": ["absent_MD", "layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"],
    "gated": ["gate.weight"],
    "low_rank": ["factor_MRDD", "weight_R", "bias_D"],
    "cross_attention": ["cls_D", "modality_MD", "norm.weight", "norm.bias"],  # and the blocks
    "bottleneck": ["bottleneck_KD", "norm.weight", "norm.bias"],
    "late": [],
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_parameters(name):
    """The parameters that no modality owns are a short list."""
    model = network(DESIGNS[name])
    owned = {key for m in range(3) for key, where in own(model, m) if where is ...}
    shared = [
        key
        for key, _ in model.named_parameters()
        if key not in owned and not key.startswith("fusion.blocks.")
    ]
    wanted = [f"fusion.{part}" for part in SHARED[name]]
    assert sorted(shared) == sorted(
        [*wanted, "heads.digit.weight", "heads.digit.bias", "projections.log_scale"]
    )
