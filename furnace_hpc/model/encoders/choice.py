"""Which encoder a modality gets."""

from torch import nn

from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.convolutions import AudioEncoder, ImageEncoder
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.transformers import (
    AudioTransformer,
    TextEncoder,
    VisionTransformer,
)
from furnace_hpc.model.own_modules import own_encoder


def make_encoder(name: str, config: ModelConfig, shapes: InputShapes) -> nn.Module:
    """Make the encoder of a modality that the config asks for.

    Raises:
        ConfigError: trained weights are missing or do not fit the data.
    """
    if own := own_encoder(name, config, shapes):
        return own
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
    raise ValueError(f"no encoder for modality {name!r}")
