"""Small inputs of each family of Hugging Face encoders, and the properties of their data sets."""

from dataclasses import replace

import torch
from encoder_folders import MODALITIES, TEXT_TOKENS, VOCABULARY
from torch import Tensor

from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.input_shapes import InputShapes

Sample = tuple[Tensor, Tensor | None]
WAVES = ("wav2vec2", "wav2vec2-large", "hubert", "wavlm")
FRAMES = {"ast": 48, "whisper": 48, "clap": 60}
SHAPES = InputShapes(
    vocab_size=VOCABULARY,
    pad_id=1,
    image_channels=1,
    audio_coefficients=16,
    audio_frames=48,
    text_tokens=TEXT_TOKENS,
)
SIZES = {"width": 16, "num_heads": 2, "feedforward": 32, "dropout": 0.0}
LAYERS = {"text_layers": 1, "image_layers": 1, "audio_layers": 1}


def modality_of(family: str) -> str:
    return next(name for name, families in MODALITIES.items() if family in families)


def shapes_of(family: str) -> InputShapes:
    if family in WAVES:
        return replace(SHAPES, audio_coefficients=0, audio_frames=400)
    return replace(SHAPES, audio_frames=FRAMES.get(family, 48))


def sample_of(family: str) -> Sample:
    """Three padded samples and their lengths."""
    generator = torch.Generator().manual_seed(5)
    modality, shapes = modality_of(family), shapes_of(family)
    if modality == "text":
        ids = torch.randint(3, VOCABULARY, (3, 20), generator=generator)
        lengths = torch.tensor([20, 13, 6])
        ids[torch.arange(20) >= lengths.unsqueeze(1)] = SHAPES.pad_id
        return ids, lengths
    if modality == "image":
        return torch.randn(3, 1, 32, 32, generator=generator), None
    if family in WAVES:
        waves, lengths = torch.randn(3, 400, generator=generator), torch.tensor([400, 260, 99])
        return waves * (torch.arange(400) < lengths.unsqueeze(1)), lengths
    return torch.randn(3, 16, shapes.audio_frames, generator=generator), None


def config_of(modality: str, encoder: object, **changes: object) -> ModelConfig:
    section = {"encoder": str(encoder)} | {
        k: v for k, v in changes.items() if k.startswith("allow")
    }
    return ModelConfig(modalities=(modality,), **SIZES, **LAYERS, **{modality: section})
