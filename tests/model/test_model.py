"""The network, and errors of the article that it must not repeat."""

import itertools

import pytest
import torch
from make import DESIGNS, make_inputs, make_model

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.model.attention import masked_mean
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import drop_modalities

NAMES = ("text", "image", "audio")
SUBSETS = [subset for n in (1, 2, 3) for subset in itertools.combinations(range(3), n)]


design = pytest.mark.parametrize("changes", DESIGNS.values(), ids=DESIGNS)


def logits(model, inputs, lengths, present):
    with torch.no_grad():
        return model(inputs, lengths, present)["logits"]["digit"]


def take(tensors, rows):
    return {name: tensor[rows] for name, tensor in tensors.items()}


@design
def test_logits_do_not_depend_on_other_samples(changes):
    model, (inputs, lengths, present) = make_model(**changes), make_inputs(B=5)
    lengths = {"text": torch.tensor([9, 4, 7, 1, 9]), "audio": torch.tensor([21, 10, 3, 16, 21])}
    present[1, 0] = present[2, 1] = present[3, 1:] = False
    whole = logits(model, inputs, lengths, present)
    for row in range(5):
        alone = logits(model, take(inputs, [row]), take(lengths, [row]), present[[row]])
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=0)


def test_attention_of_the_article_mixes_the_batch():
    """An error of the article that the test above detects.

    MultiheadAttention without batch_first on [B, M, D] attends over the batch, not the modalities.
    """
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(16, 4)
    x = torch.randn(5, 3, 16)
    out = attention(x, x, x)[0]
    alone = attention(x[:1], x[:1], x[:1])[0]
    assert (out[0] - alone[0]).abs().max() > 1e-2  # other samples change a sample
    changed = x.clone()
    changed[:, 2] += 1
    text = attention(changed, changed, changed)[0][:, 0]
    assert (text - out[:, 0]).abs().max() < 1e-6  # audio has no effect on text


@design
@pytest.mark.parametrize("name", NAMES)
def test_each_modality_changes_the_fused_output(name, changes):
    model, (inputs, lengths, present) = make_model(**changes), make_inputs()
    captured = []
    model.fusion.register_forward_hook(
        lambda module, args, output: captured.append(output.detach())
    )
    logits(model, inputs, lengths, present)
    changed = inputs | {name: torch.roll(inputs[name], 1, 0)}
    logits(model, changed, lengths, present)
    assert (captured[0] - captured[1]).abs().max() > 1e-4


@design
@pytest.mark.parametrize("name", ["text", "audio"])
def test_padding_changes_nothing(name, changes):
    """Neither the amount of padding nor the values in it change the logits."""
    model, (inputs, _, present) = make_model(**changes), make_inputs(text=9, frames=21)
    lengths = {"text": torch.tensor([9, 4, 7, 1]), "audio": torch.tensor([21, 10, 3, 16])}
    before = logits(model, inputs, lengths, present)
    extra, value = (
        torch.nn.functional.pad(inputs[name], (0, 14), value=0),
        13 if name == "text" else 7.7,
    )
    torch.testing.assert_close(
        logits(model, inputs | {name: extra}, lengths, present), before, atol=1e-5, rtol=0
    )
    for row, length in enumerate(lengths[name]):
        extra[row, ..., length:] = value
    torch.testing.assert_close(
        logits(model, inputs | {name: extra}, lengths, present), before, atol=1e-5, rtol=0
    )


@design
@pytest.mark.parametrize("name", ["image", "audio"])
def test_black_and_silent_are_not_absent(name, changes):
    model, (inputs, lengths, present) = make_model(**changes), make_inputs()
    nothing = inputs | {name: torch.zeros_like(inputs[name])}
    there = logits(model, nothing, lengths, present)
    present[:, NAMES.index(name)] = False
    assert (there - logits(model, nothing, lengths, present)).abs().max() > 1e-2


@design
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_subsets_ignore_absent_inputs(subset, changes):
    """Logits of every subset are finite. Garbage in absent inputs does not change them."""
    model, (inputs, lengths, present) = make_model(**changes), make_inputs()
    with torch.no_grad():
        as_if_absent = model(inputs, lengths, present, [subset])["subsets"][0]["digit"]
    present = torch.zeros_like(present)
    present[:, list(subset)] = True
    before = logits(model, inputs, lengths, present)
    absent = [name for m, name in enumerate(NAMES) if m not in subset]
    garbage = {
        name: torch.full_like(inputs[name], float("nan"))
        if name != "text"
        else inputs[name] * 0 + 19
        for name in absent
    }
    no_length = {
        name: torch.zeros_like(length) if name in absent else length
        for name, length in lengths.items()
    }
    after = logits(model, inputs | garbage, no_length, present)
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    # `subsets` runs no encoder again
    torch.testing.assert_close(as_if_absent, before, atol=1e-5, rtol=0)


def test_sample_without_any_modality():
    """It is an error in the batch, and gives NaN in a subset."""
    model, (inputs, lengths, present) = make_model(), make_inputs()
    present[2, 0] = False
    with torch.no_grad():
        text_alone = model(inputs, lengths, present, [(0,)])["subsets"][0]["digit"]
    assert text_alone.isnan().any(1).tolist() == [False, False, True, False]
    present[2] = False
    with pytest.raises(
        ValueError, match="sample 2 of the batch has none of the modalities text, image, audio"
    ):
        model(inputs, lengths, present)


@pytest.mark.parametrize("absent", [None, 0, 1, 2])
def test_each_encoder_runs_once(
    absent,
):
    """It runs once for logits, losses and subsets, even if the whole batch lacks its input."""
    model, (inputs, lengths, present) = make_model(), make_inputs()
    if absent is not None:
        present[:, absent] = False
    calls = []
    for encoder in model.encoders.values():
        encoder.register_forward_hook(
            lambda module, args, output: calls.append(type(module).__name__)
        )
    config, task = LossConfig(alpha=1, beta=1, info_nce=1, unimodal=1), TaskConfig(name="digit")
    output = model(inputs, lengths, present, SUBSETS)
    total_loss(output, {"digit": torch.zeros(4).long()}, present, config, (task,))[
        "loss"
    ].backward()
    assert sorted(calls) == ["AudioEncoder", "ImageEncoder", "TextEncoder"]


def test_unused_modality_has_no_encoder():
    model = make_model(modalities=("image", "audio"))
    assert set(model.encoders) == {"image", "audio"}


def test_modality_dropout_rate():
    """Dropout never hides all modalities, and never shows an absent one."""
    torch.manual_seed(0)
    present = torch.tensor([[True, True, True], [True, False, False], [False, True, True]]).repeat(
        4000, 1
    )
    kept = drop_modalities(present, 0.5)
    assert kept.any(1).all()
    assert not (kept & ~present).any()
    # Each of three is kept with 1/2. If all would be hidden (1/8), one stays: 1/2 + 1/24.
    assert kept[::3].float().mean().item() == pytest.approx(1 / 2 + 1 / 24, abs=0.01)
    assert torch.equal(drop_modalities(present, 0.0), present)


def test_modality_dropout_only_in_training():
    """The output has the modalities that the network used."""
    model, (inputs, lengths, present) = make_model(modality_dropout=0.9), make_inputs(B=16)
    assert torch.equal(model(inputs, lengths, present)["present"], present)
    torch.manual_seed(0)
    output = model.train()(inputs, lengths, present)
    assert 16 <= output["present"].sum() < 30
    assert torch.equal(output["features"].abs().sum(2) > 0, output["present"])


def test_masked_mean_by_hand():
    x = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(x, mask).tolist() == [[2.0], [0.0]]
