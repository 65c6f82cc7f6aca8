"""Which encoder a modality gets."""

from torch import nn

from furnace_hpc.config.encoder_families import FAMILIES, RANDOM
from furnace_hpc.config.pretrained_files import check_encoder
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.convolutions import AudioEncoder, ImageEncoder
from furnace_hpc.model.encoders.hub_images import HubImageEncoder
from furnace_hpc.model.encoders.hub_sounds import (
    ClapEncoder,
    PatchEncoder,
    WaveformEncoder,
    WhisperEncoder,
)
from furnace_hpc.model.encoders.hub_text import HubTextEncoder
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.numbers import NumberEncoder
from furnace_hpc.model.encoders.transformers import (
    AudioTransformer,
    TextEncoder,
    VisionTransformer,
)
from furnace_hpc.model.own_code.modules import own_encoder


def make_encoder(name: str, config: ModelConfig, shapes: InputShapes) -> nn.Module:
    """Make the encoder of a modality that the config asks for.

    Raises:
        ConfigError: trained weights are missing or do not fit the data.
    """
    if own := own_encoder(name, config, shapes):
        return own
    section = getattr(config, name, None)
    if section and section.encoder:
        return _named_encoder(name, section.encoder, config, shapes)
    match name, config.image_encoder, config.audio_encoder:
        case "text", _, _:
            return TextEncoder(config, shapes)
        case "image", "cnn", _:
            return ImageEncoder(shapes.image_channels, config.width, config.image_tokens)
        case "image", "vit", _:
            return VisionTransformer(config, shapes)
        case "audio", _, "cnn":
            return AudioEncoder(shapes.audio_coefficients, config.width, config.audio_tokens)
        case "audio", _, "transformer":
            return AudioTransformer(config, shapes)
        case "numbers", _, _:
            return NumberEncoder(shapes.numbers, config.width, config.feedforward, config.dropout)
    raise ValueError(f"no encoder for modality {name!r}")


def _named_encoder(
    modality: str, encoder: str, config: ModelConfig, shapes: InputShapes
) -> nn.Module:
    """Make the encoder that the key `encoder` names: `random:FAMILY`, a folder or a hub name."""
    if encoder.startswith(RANDOM):
        family = FAMILIES[encoder.removeprefix(RANDOM)]
    else:
        family = check_encoder(modality, encoder, shapes.architectures.get(modality))
    match family.reads:
        case "tokens":
            return HubTextEncoder(config, shapes)
        case "pixels":
            return HubImageEncoder(config, shapes)
        case "patches":
            return PatchEncoder(config, shapes)
        case "whisper":
            return WhisperEncoder(config, shapes)
        case "clap":
            return ClapEncoder(config, shapes)
        case "waveform":
            return WaveformEncoder(config, shapes)
