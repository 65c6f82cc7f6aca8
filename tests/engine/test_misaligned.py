"""Text, image and audio that each say one bit of the label, so that every level is known: 1 of them all, 1/2 of two.

Sound that belongs to another sample is worth nothing: then a fusion is as good as text and image are, and no worse.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from make import DESIGNS, SHAPES
from torch import Tensor

from furnace_hpc.config.model_config import LossConfig, ModelConfig, TaskConfig
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

STEPS, TESTED, TASK = 75, 1000, TaskConfig(name="bits")
Inputs = dict[str, Tensor]


def samples(B: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
    """Inputs of B samples, and their label: 4 x the word's bit + 2 x the picture's + the sound's."""
    text_B, image_B, audio_B = torch.randint(0, 2, (3, B), generator=generator)
    text = torch.randint(7, 20, (B, 4), generator=generator)
    text[:, 1] = 5 + text_B  # one of two words, among others that say nothing
    image = torch.randn(B, 1, 8, 8, generator=generator) / 2
    image[:, 0, :, :4] += 2 * (image_B.view(-1, 1, 1) - 0.5)  # its left half is bright or dark
    audio = torch.randn(B, 40, 8, generator=generator) / 2
    audio[:, :20] += 2 * (audio_B.view(-1, 1, 1) - 0.5)  # its low coefficients
    return {"text": text, "image": image, "audio": audio}, 4 * text_B + 2 * image_B + audio_B


def as_it_is(inputs: Inputs) -> Inputs:
    return inputs


def rolled(inputs: Inputs) -> Inputs:
    """Each sample with the sound of its neighbour."""
    return inputs | {"audio": inputs["audio"].roll(1, 0)}


def trained(see: Callable[[Inputs], Inputs], **changes: Any) -> FusionModel:
    torch.manual_seed(0)
    settings = {
        "width": 16,
        "num_heads": 2,
        "feedforward": 32,
        "text_layers": 1,
        "dropout": 0.0,
    } | changes
    model, generator = (
        FusionModel(ModelConfig(**settings), SHAPES, {"bits": 8}),
        torch.Generator().manual_seed(1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS)
    for _ in range(STEPS):
        inputs, label_B = samples(64, generator)
        present = torch.ones(64, len(model.modalities), dtype=torch.bool)
        output = model(see(inputs), {}, present)
        optimizer.zero_grad()
        total_loss(output, {"bits": label_B}, output["present"], LossConfig(), (TASK,))[
            "loss"
        ].backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def answers(
    model: FusionModel, see: Callable[[Inputs], Inputs], subset: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """What it says of samples that it has not seen, from a subset of the modalities if asked for, and the truth."""
    inputs, label_N = samples(TESTED, torch.Generator().manual_seed(2))
    present = torch.ones(TESTED, len(model.modalities), dtype=torch.bool)
    with torch.no_grad():
        output = model(see(inputs), {}, present, [subset] if subset else [])
    logits = output["subsets"][0] if subset else output["logits"]
    return logits["bits"].argmax(1), label_N


def accuracy(
    model: FusionModel, see: Callable[[Inputs], Inputs], subset: tuple[int, ...] | None = None
) -> float:
    said, truth = answers(model, see, subset)
    return (said == truth).float().mean().item()


# 1/2 within three deviations of 1000 throws.
HALF = pytest.approx(0.5, abs=0.048)


@pytest.mark.parametrize("name", ["concat", "gated", "low_rank", "cross_attention", "bottleneck"])
def test_audio_rolled_by_one_sample_drops_a_trained_fusion_to_what_it_makes_of_text_and_image(name):
    model = trained(as_it_is, **DESIGNS[name], modality_dropout=0.15)
    assert accuracy(model, as_it_is) > 0.98
    text_and_image = accuracy(model, as_it_is, (0, 1))
    assert text_and_image == HALF
    assert accuracy(model, rolled) == HALF
    assert accuracy(model, rolled) == pytest.approx(text_and_image, abs=0.06)
    said, truth = answers(model, rolled)
    # and text and image are believed as before
    assert ((said // 2) == (truth // 2)).float().mean() > 0.98
    assert accuracy(model, as_it_is, (0,)) == pytest.approx(0.25, abs=0.042)


def test_a_fusion_that_learns_with_rolled_audio_reaches_the_level_of_one_that_learns_without():
    with_rolled, without = trained(rolled), trained(as_it_is, modalities=("text", "image"))
    assert accuracy(without, as_it_is) == HALF
    assert accuracy(with_rolled, rolled) == HALF
    assert accuracy(with_rolled, as_it_is) == HALF  # it has learnt that the sound says nothing
    for model in (with_rolled, without):
        said, truth = answers(model, as_it_is)
        assert ((said // 2) == (truth // 2)).float().mean() > 0.98
