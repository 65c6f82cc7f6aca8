"""Text, image and audio each determine one bit of the label, so every expected accuracy is known.

It is 1 with all three modalities and 1/2 with two. The audio of another sample carries no
information. With it a fusion must be as good as with text and image alone.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from make import DESIGNS, SHAPES
from torch import Tensor

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

STEPS, TESTED, TASK = 75, 1000, TaskConfig(name="bits")
Inputs = dict[str, Tensor]


def samples(B: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
    """Inputs of B samples, and their labels: 4 x text bit + 2 x image bit + audio bit."""
    text_B, image_B, audio_B = torch.randint(0, 2, (3, B), generator=generator)
    text = torch.randint(7, 20, (B, 4), generator=generator)
    text[:, 1] = 5 + text_B  # one of two words, among random ones
    image = torch.randn(B, 1, 8, 8, generator=generator) / 2
    image[:, 0, :, :4] += 2 * (image_B.view(-1, 1, 1) - 0.5)  # the left half is bright or dark
    audio = torch.randn(B, 40, 8, generator=generator) / 2
    audio[:, :20] += 2 * (audio_B.view(-1, 1, 1) - 0.5)  # the low coefficients
    return {"text": text, "image": image, "audio": audio}, 4 * text_B + 2 * image_B + audio_B


def unchanged(inputs: Inputs) -> Inputs:
    return inputs


def rolled(inputs: Inputs) -> Inputs:
    """Each sample gets the audio of its neighbour."""
    return inputs | {"audio": inputs["audio"].roll(1, 0)}


def trained(change: Callable[[Inputs], Inputs], **changes: Any) -> FusionModel:
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
        output = model(change(inputs), {}, present)
        optimizer.zero_grad()
        total_loss(output, {"bits": label_B}, output["present"], LossConfig(), (TASK,))[
            "loss"
        ].backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def predictions(
    model: FusionModel, change: Callable[[Inputs], Inputs], subset: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Predictions of new samples and their labels, optionally with a subset of the modalities."""
    inputs, label_N = samples(TESTED, torch.Generator().manual_seed(2))
    present = torch.ones(TESTED, len(model.modalities), dtype=torch.bool)
    with torch.no_grad():
        output = model(change(inputs), {}, present, [subset] if subset else [])
    logits = output["subsets"][0] if subset else output["logits"]
    return logits["bits"].argmax(1), label_N


def accuracy(
    model: FusionModel, change: Callable[[Inputs], Inputs], subset: tuple[int, ...] | None = None
) -> float:
    predicted, labels = predictions(model, change, subset)
    return (predicted == labels).float().mean().item()


# 1/2 within three standard deviations of 1000 samples.
HALF = pytest.approx(0.5, abs=0.048)


OTHERS = ("concat", "low_rank", "gated", "bottleneck")
SLOW = (pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)


@pytest.mark.parametrize("name", ["cross_attention", *SLOW])
def test_rolled_audio_with_a_trained_fusion(name):
    """Accuracy drops to that of text and image."""
    model = trained(unchanged, **DESIGNS[name], modality_dropout=0.15)
    assert accuracy(model, unchanged) > 0.98
    text_and_image = accuracy(model, unchanged, (0, 1))
    assert text_and_image == HALF
    assert accuracy(model, rolled) == HALF
    assert accuracy(model, rolled) == pytest.approx(text_and_image, abs=0.06)
    predicted, labels = predictions(model, rolled)
    # The bits of text and image are predicted as before.
    assert ((predicted // 2) == (labels // 2)).float().mean() > 0.98
    assert accuracy(model, unchanged, (0,)) == pytest.approx(0.25, abs=0.042)


@pytest.mark.slow
def test_training_with_rolled_audio():
    """The fusion becomes as good as one trained without audio."""
    with_rolled, without = trained(rolled), trained(unchanged, modalities=("text", "image"))
    assert accuracy(without, unchanged) == HALF
    assert accuracy(with_rolled, rolled) == HALF
    assert accuracy(with_rolled, unchanged) == HALF  # it has learnt to ignore audio
    for model in (with_rolled, without):
        predicted, labels = predictions(model, unchanged)
        assert ((predicted // 2) == (labels // 2)).float().mean() > 0.98
