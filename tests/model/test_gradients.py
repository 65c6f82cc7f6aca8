"""Which parameters learn: all while every modality is there; of a modality that is absent, none of its own.

A modality's own are its encoder (with its projection to the network's width), its norm, its InfoNCE projection, its
VICReg expander and its unimodal heads, and of each fusion what `own` lists. The rest is shared, and goes on learning
from who is there. So does what stands for an absent modality: the stand-in vector and the columns that it goes
through (concat), the constant 1 of [1; x_m] (low_rank).
"""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from make import DESIGNS, SHAPES, make_inputs, make_model
from torch import Tensor
from transformers import ASTConfig, BertConfig, ViTConfig

from furnace_hpc.config.model_config import LossConfig, TaskConfig
from furnace_hpc.model.attention import CrossAttentionFusion
from furnace_hpc.model.fusion import ConcatFusion, GatedFusion, LowRankFusion
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

NAMES, WIDTH = ("text", "image", "audio"), 32
LOSS = LossConfig(alpha=0.5, beta=0.3, info_nce=1.0, unimodal=1.0, vicreg=0.1, projection_width=16)
# Softmax does not see a shift of all keys, so their bias learns nothing but rounding.
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
    """Modality m's own parameters, and where in the parameter its own part is."""
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
    """Of all losses together; an absent modality's inputs are garbage."""
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
    # every one took part, also where it gets zero
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items()}


def largest(gradient: Tensor) -> float:
    return gradient.abs().max().item()


@design
def test_every_parameter_gets_a_gradient_where_all_modalities_are_there(changes):
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
def test_what_is_an_absent_modalitys_own_gets_exactly_zero_and_all_else_goes_on_learning(
    absent, changes
):
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
    # the stand-in of the one that is absent, and no other
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
def test_what_is_no_modalitys_own_is_a_short_list(name):
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
