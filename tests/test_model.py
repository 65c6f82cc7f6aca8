"""The network, and the errors of the article that it must not have."""

import itertools

import pytest
import torch
from make import make_inputs, make_model

from furnace_hpc.model.attention import masked_mean

SUBSETS = [subset for n in (1, 2, 3) for subset in itertools.combinations(range(3), n)]


def logits(model, inputs, lengths, present):
    with torch.no_grad():
        return model(inputs, lengths, present)["logits"]["digit"]


def take(tensors, rows):
    return {name: tensor[rows] for name, tensor in tensors.items()}


def test_a_samples_logits_do_not_depend_on_its_batch_mates():
    model, (inputs, lengths, present) = make_model(), make_inputs(B=5)
    whole = logits(model, inputs, lengths, present)
    for row in range(5):
        alone = logits(model, take(inputs, [row]), take(lengths, [row]), present[[row]])
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=0)


def test_the_articles_attention_mixes_the_batch_and_not_the_modalities():
    """What the test above catches: MultiheadAttention without batch_first on [B, M, D] attends over the batch."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(16, 4)
    x = torch.randn(5, 3, 16)
    out = attention(x, x, x)[0]
    alone = attention(x[:1], x[:1], x[:1])[0]
    assert (out[0] - alone[0]).abs().max() > 1e-2  # batch mates change a sample
    moved = x.clone()
    moved[:, 2] += 1
    assert (attention(moved, moved, moved)[0][:, 0] - out[:, 0]).abs().max() < 1e-6  # audio never reaches text


@pytest.mark.parametrize("name", ["text", "image", "audio"])
def test_each_modality_changes_the_fused_output_through_attention(name):
    model, (inputs, lengths, present) = make_model(), make_inputs()
    captured = []
    model.fusion.register_forward_hook(lambda module, args, output: captured.append(output.detach()))
    logits(model, inputs, lengths, present)
    changed = inputs | {name: torch.roll(inputs[name], 1, 0)}
    logits(model, changed, lengths, present)
    assert (captured[0] - captured[1]).abs().max() > 1e-4


def test_swapping_two_modalities_tokens_changes_the_output():
    fusion, generator = make_model().fusion, torch.Generator().manual_seed(3)
    with torch.no_grad():
        fusion.modality_MD.normal_(generator=generator)
        a, b = torch.randn(2, 4, 32, generator=generator), torch.randn(2, 4, 32, generator=generator)
        mask = torch.ones(2, 4, dtype=torch.bool)
        there, back = fusion([a, b, a], [mask] * 3, None), fusion([b, a, a], [mask] * 3, None)
    assert (there - back).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["text", "audio"])
def test_extra_padding_changes_nothing(name):
    model, (inputs, lengths, present) = make_model(), make_inputs(text=9, frames=21)
    before = logits(model, inputs, lengths, present)
    extra = torch.nn.functional.pad(inputs[name], (0, 14), value=0 if name == "text" else 7.7)
    after = logits(model, inputs | {name: extra}, lengths, present)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_every_subset_is_finite_and_garbage_in_absent_inputs_changes_nothing(subset):
    model, (inputs, lengths, present) = make_model(), make_inputs()
    present = torch.zeros_like(present)
    present[:, list(subset)] = True
    before = logits(model, inputs, lengths, present)
    absent = [name for m, name in enumerate(("text", "image", "audio")) if m not in subset]
    garbage = {
        name: torch.full_like(inputs[name], float("nan")) if name != "text" else inputs[name] * 0 + 19
        for name in absent
    }
    no_length = {name: torch.zeros_like(length) if name in absent else length for name, length in lengths.items()}
    after = logits(model, inputs | garbage, no_length, present)
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_absent_modalities_get_exactly_zero_gradient_and_present_ones_some():
    model, (inputs, lengths, present) = make_model().train(), make_inputs()
    for absent in (None, 1):
        mask = present.clone()
        if absent is not None:
            mask[:, absent] = False
        model.zero_grad(set_to_none=False)
        model(inputs, lengths, mask)["logits"]["digit"].square().sum().backward()
        for name, parameter in model.named_parameters():
            if name.endswith("pooler.weight") or "token_type" in name:
                continue
            largest = 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
            if absent is not None and name.startswith("encoders.image"):
                assert largest == 0.0, name
            elif absent is None and "key.bias" not in name:  # softmax does not see a shift of all keys
                assert largest > 0.0, name


@pytest.mark.parametrize(("pixels", "frames"), [(16, 8), (32, 40), (47, 33), (224, 640)])
def test_any_image_size_and_audio_length(pixels, frames):
    out = logits(make_model(), *make_inputs(B=2, pixels=pixels, frames=frames))
    assert out.shape == (2, 10)
    assert torch.isfinite(out).all()


def test_each_encoder_runs_once_for_prediction_and_loss():
    from furnace_hpc.model.losses import total_loss
    from furnace_hpc.spec.config import LossConfig, TaskConfig

    model, (inputs, lengths, present) = make_model(), make_inputs()
    calls = []
    for encoder in model.encoders.values():
        encoder.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    output = model(inputs, lengths, present)
    total_loss(
        output,
        {"digit": torch.zeros(4).long()},
        present,
        LossConfig(alpha=1, beta=1),
        (TaskConfig(name="digit"),),
    )
    assert sorted(calls) == ["AudioEncoder", "ImageEncoder", "TextEncoder"]


def test_a_modality_that_the_model_does_not_see_builds_no_encoder():
    model = make_model(modalities=("image", "audio"))
    assert set(model.encoders) == {"image", "audio"}


def test_activation_checkpointing_computes_blocks_twice_and_gives_the_same_loss():
    from torch.utils.checkpoint import checkpoint

    losses, counts = [], []
    for on in (False, True):
        model, (inputs, lengths, present) = make_model(text_layers=2).train(), make_inputs()
        if on:
            model.checkpoint_activations(lambda function, *args: checkpoint(function, *args, use_reentrant=False))
        calls = []
        attentions = [layer.attention for layer in model.encoders["text"].bert.encoder.layer]
        for block in [*model.fusion.blocks, *attentions]:
            block.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(1))
        loss = model(inputs, lengths, present)["logits"]["digit"].square().mean()
        loss.backward()
        losses.append(loss.item())
        counts.append(len(calls))
    assert losses[0] == losses[1]
    assert counts == [3, 6]


def test_masked_mean_by_hand():
    x = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(x, mask).tolist() == [[2.0], [0.0]]
