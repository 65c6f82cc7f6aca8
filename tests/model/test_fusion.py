"""The fusions against what they are by definition."""

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
    return torch.randn(7, 3, width, generator=torch.Generator().manual_seed(0)) * PRESENT.unsqueeze(
        2
    )


def logits(model: FusionModel, changed: tuple[str, ...] = ()) -> torch.Tensor:
    """Of four samples; some modalities of each are another sample's."""
    inputs, lengths, present = make_inputs()
    inputs |= {name: inputs[name].roll(1, 0) for name in changed}
    with torch.no_grad():
        return model(inputs, lengths, present)["logits"]["digit"]


def in_each_others_place(model: FusionModel, pair: tuple[int, int], **changes: Any) -> FusionModel:
    """The same network, but each of two modalities comes into the fusion where the other does."""
    order = list(NAMES)
    order[pair[0]], order[pair[1]] = NAMES[pair[1]], NAMES[pair[0]]
    other = make_model(modalities=tuple(order), **changes)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", DESIGNS)
def test_swapping_two_modalities_changes_the_logits_of_all_but_late_fusion(name, pair):
    model = make_model(**DESIGNS[name])
    heartbeat = (
        (logits(model) - logits(in_each_others_place(model, pair, **DESIGNS[name]))).abs().max()
    )
    if name == "late":  # a mean has no order
        assert heartbeat < 1e-6
    else:
        assert heartbeat > 1e-3


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_cross_attention_tells_modalities_apart_by_their_embeddings_alone(pair):
    model = make_model()
    # the article's form: attention does not see which token comes from where
    model.fusion.modality_MD.data.zero_()
    assert (logits(model) - logits(in_each_others_place(model, pair))).abs().max() < 1e-5


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", DESIGNS)
def test_what_one_modality_says_depends_on_another_in_all_but_late_fusion(name, pair):
    """How far text moves the logits is another distance where the audio is another one: they do not just add up."""
    model, (a, b) = make_model(**DESIGNS[name]), (NAMES[pair[0]], NAMES[pair[1]])
    here = logits(model, (a,)) - logits(model)
    there = logits(model, (a, b)) - logits(model, (b,))
    if name == "late":
        torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    else:
        assert (here - there).abs().max() > 1e-3
    assert here.abs().max() > 1e-2


def test_low_rank_fusion_is_the_tensor_fusion_contracted_with_the_sum_of_its_factors():
    torch.manual_seed(1)
    fusion, x = LowRankFusion(3, width=6, rank=4).double(), features().double()
    ones = torch.cat([torch.ones(7, 3, 1), x], dim=2).double()
    # tensor fusion's own input: all products of all features
    outer = torch.einsum("bi,bj,bk->bijk", *ones.unbind(1))
    a, b, c = fusion.factor_MRDD
    weights = torch.einsum("r,rid,rjd,rkd->ijkd", fusion.weight_R, a, b, c)
    by_tensor = torch.einsum("bijk,ijkd->bd", outer, weights) + fusion.bias_D
    torch.testing.assert_close(fusion(x, PRESENT), by_tensor)


def test_low_rank_fusion_of_a_subset_is_that_of_a_tensor_without_the_others():
    torch.manual_seed(1)
    fusion, x = LowRankFusion(3, width=6, rank=4), features()
    garbage = torch.where(PRESENT.unsqueeze(2), x, torch.full_like(x, 9.0))
    torch.testing.assert_close(fusion(x, PRESENT), fusion(garbage, PRESENT))


def test_gates_are_zero_where_absent_and_sum_to_one_over_what_is_present():
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


def test_concat_tells_an_absent_modality_from_one_whose_features_are_zero():
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
    # So the logits are the mean of what each modality alone gives.
    model, (inputs, lengths, present) = make_model(**DESIGNS["late"]), make_inputs()
    with torch.no_grad():
        output = model(inputs, lengths, present, [(0,), (1,), (2,)])
    alone = torch.stack([part["digit"] for part in output["subsets"]])
    torch.testing.assert_close(output["logits"]["digit"], alone.mean(0))


@pytest.mark.parametrize("layers", [2, 3])
def test_in_a_bottleneck_modalities_meet_in_the_shared_tokens_alone_and_from_the_second_layer_on(
    layers,
):
    torch.manual_seed(0)
    tokens = [torch.randn(2, 4, 8) for _ in range(2)]
    masks, present = [torch.ones(2, 4).bool()] * 2, torch.ones(2, 2).bool()
    fusion = BottleneckFusion(2, 8, layers, 2, 8, 0.0, 3).eval()

    def heartbeat(number: int) -> float:
        """How far the first modality's tokens move, after so many layers, when the second's change."""
        seen = []
        hook = fusion.layers[number][0].register_forward_hook(
            lambda module, args, output: seen.append(output[:, 3:])
        )
        for second in (tokens[1], tokens[1] + 1.0 + torch.arange(8)):
            fusion([tokens[0], second], masks, present, None)
        hook.remove()
        return (seen[0] - seen[1]).abs().max().item()

    assert heartbeat(0) == 0.0
    assert heartbeat(1) > 1e-3


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
