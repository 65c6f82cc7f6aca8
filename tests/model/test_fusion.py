"""The fusions against their definitions."""

import itertools
from typing import Any

import pytest
import torch
from make import DESIGNS, make_inputs, make_model

from furnace_hpc.model.attention import BottleneckFusion, masked_mean
from furnace_hpc.model.fusion import ConcatFusion, GatedFusion, LowRankFusion
from furnace_hpc.model.network import FusionModel

NAMES = ("text", "image", "audio")
PAIRS = list(itertools.combinations(range(3), 2))
PRESENT = torch.tensor(
    [[a, b, c] for a, b, c in itertools.product([True, False], repeat=3) if a or b or c]
)


def features(width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, width, generator=generator) * PRESENT.unsqueeze(2)


def logits(model: FusionModel, changed: tuple[str, ...] = ()) -> torch.Tensor:
    """Logits of four samples. The `changed` modalities come from another sample."""
    inputs, lengths, present = make_inputs()
    inputs |= {name: inputs[name].roll(1, 0) for name in changed}
    with torch.no_grad():
        return model(inputs, lengths, present)["logits"]["digit"]


def swapped(model: FusionModel, pair: tuple[int, int], **changes: Any) -> FusionModel:
    """The same network, with two modalities swapped in the input of the fusion."""
    order = list(NAMES)
    order[pair[0]], order[pair[1]] = NAMES[pair[1]], NAMES[pair[0]]
    other = make_model(modalities=tuple(order), **changes)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", DESIGNS)
def test_order_of_modalities_matters(name, pair):
    """Swapping two modalities changes the logits of all fusions except late fusion."""
    model = make_model(**DESIGNS[name])
    difference = (logits(model) - logits(swapped(model, pair, **DESIGNS[name]))).abs().max()
    if name == "late":  # a mean has no order
        assert difference < 1e-6
    else:
        assert difference > 1e-3


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_cross_attention_needs_modality_embeddings(pair):
    """Without them, swapping two modalities changes nothing, as in the article's form."""
    model = make_model()
    # the article's form: attention does not see the modality of a token
    model.fusion.modality_MD.data.zero_()
    assert (logits(model) - logits(swapped(model, pair))).abs().max() < 1e-5


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", DESIGNS)
def test_modalities_interact(name, pair):
    """The effect of one modality depends on another, except in late fusion.

    So the modalities do not just add up.
    """
    model, (a, b) = make_model(**DESIGNS[name]), (NAMES[pair[0]], NAMES[pair[1]])
    here = logits(model, (a,)) - logits(model)
    there = logits(model, (a, b)) - logits(model, (b,))
    if name == "late":
        torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    else:
        assert (here - there).abs().max() > 1e-3
    assert here.abs().max() > 1e-2


def test_low_rank_fusion_equals_tensor_fusion():
    """The tensor is contracted with the sum of the low-rank factors."""
    torch.manual_seed(1)
    fusion, x = LowRankFusion(3, width=6, rank=4).double(), features().double()
    ones = torch.cat([torch.ones(7, 3, 1), x], dim=2).double()
    # the input of tensor fusion: all products of features
    outer = torch.einsum("bi,bj,bk->bijk", *ones.unbind(1))
    a, b, c = fusion.factor_MRDD
    weights = torch.einsum("r,rid,rjd,rkd->ijkd", fusion.weight_R, a, b, c)
    by_tensor = torch.einsum("bijk,ijkd->bd", outer, weights) + fusion.bias_D
    torch.testing.assert_close(fusion(x, PRESENT), by_tensor)


def test_low_rank_fusion_ignores_absent_modalities():
    torch.manual_seed(1)
    fusion, x = LowRankFusion(3, width=6, rank=4), features()
    garbage = torch.where(PRESENT.unsqueeze(2), x, torch.full_like(x, 9.0))
    torch.testing.assert_close(fusion(x, PRESENT), fusion(garbage, PRESENT))


def test_gates_sum_to_one_over_present_modalities():
    torch.manual_seed(1)
    fusion, x = GatedFusion(3, width=6), features()
    gates = fusion.gates(x, PRESENT)
    torch.testing.assert_close(gates.sum(1), torch.ones(7, 6))
    assert torch.equal((gates > 0).all(2), PRESENT)
    alone = fusion(x, PRESENT)[PRESENT.sum(1) == 1]
    by_hand = [
        fusion.transforms[m](x[row, m]).tanh()
        for row in range(7)
        for m in range(3)
        if PRESENT[row].sum() == 1 and PRESENT[row, m]
    ]
    torch.testing.assert_close(alone, torch.stack(by_hand))


def test_concat_absent_is_not_zero():
    """An absent modality and one whose features are zero give different outputs."""
    torch.manual_seed(1)
    fusion, zeros = ConcatFusion(2, 6, 8, 0.0).eval(), torch.zeros(1, 2, 6)
    there, absent = (fusion(zeros, torch.tensor([[True, second]])) for second in (True, False))
    assert (there - absent).abs().max() > 1e-2


def test_a_bottleneck_without_layers_is_late_fusion():
    tokens = [torch.randn(7, T, 6, generator=torch.Generator().manual_seed(T)) for T in (3, 4, 5)]
    masks = [PRESENT[:, m : m + 1].expand(7, part.shape[1]) for m, part in enumerate(tokens)]
    fusion = BottleneckFusion(3, 6, 0, 2, 8, 0.0, 4)
    assert not list(fusion.parameters())
    pooled = torch.stack(
        [masked_mean(part, mask) for part, mask in zip(tokens, masks, strict=True)], dim=1
    )
    torch.testing.assert_close(fusion(tokens, masks, PRESENT, None), masked_mean(pooled, PRESENT))
    # So the logits are the mean of those of each modality alone.
    model, (inputs, lengths, present) = make_model(**DESIGNS["late"]), make_inputs()
    with torch.no_grad():
        output = model(inputs, lengths, present, [(0,), (1,), (2,)])
    alone = torch.stack([part["digit"] for part in output["subsets"]])
    torch.testing.assert_close(output["logits"]["digit"], alone.mean(0))


@pytest.mark.parametrize("layers", [2, 3])
def test_bottleneck_interacts_from_second_layer(
    layers,
):
    """Modalities interact only through the shared tokens, so not in the first layer."""
    torch.manual_seed(0)
    tokens = [torch.randn(2, 4, 8) for _ in range(2)]
    masks, present = [torch.ones(2, 4).bool()] * 2, torch.ones(2, 2).bool()
    fusion = BottleneckFusion(2, 8, layers, 2, 8, 0.0, 3).eval()

    def effect(layer: int) -> float:
        """Change of the first modality's tokens after a layer, if the second's tokens change."""
        seen = []
        hook = fusion.layers[layer][0].register_forward_hook(
            lambda module, args, output: seen.append(output[:, 3:])
        )
        for second in (tokens[1], tokens[1] + 1.0 + torch.arange(8)):
            fusion([tokens[0], second], masks, present, None)
        hook.remove()
        return (seen[0] - seen[1]).abs().max().item()

    assert effect(0) == 0.0
    assert effect(1) > 1e-3


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("concat", lambda D, F: 3 * D + (3 * (D + 1) + 1) * F + (F + 1) * D),
        ("gated", lambda D, F: 3 * D * D + (3 * D) ** 2),
        ("low_rank", lambda D, F: 3 * 3 * (D + 1) * D + 3 + D),
    ],
)
def test_parameter_counts_are_those_of_the_formulas(name, formula):
    fusion = make_model(**DESIGNS[name]).fusion
    assert sum(parameter.numel() for parameter in fusion.parameters()) == formula(32, 48)
    assert len(fusion.state_dict()) == len(list(fusion.parameters()))
