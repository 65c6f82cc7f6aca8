"""Sizes of an encoder with random weights, in the words of its family's configuration.

Widths, heads and layers come from the section `model`. Ids, pixels and frames come from the pack.
"""

import math
from typing import Any

from furnace_hpc.config.encoder_families import FAMILIES
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.input_shapes import InputShapes

POSITIONS = 512  # of texts. Longer texts get more.
STAGES = 4  # of networks whose feature maps shrink


# Rotary positions turn parts of each head.
_MULTIPLE_OF_HEAD = {"modernbert": 2, "dinov3": 4}


def random_settings(family: str, config: ModelConfig, shapes: InputShapes) -> dict[str, Any]:
    """The values of the configuration. The others are those of the published architecture."""
    head, multiple = config.width // config.num_heads, _MULTIPLE_OF_HEAD.get(family, 1)
    if head % multiple:
        raise ConfigError(
            f"model.width {config.width} / model.num_heads {config.num_heads} is {head}, and "
            f"random:{family} needs a multiple of {multiple}. Change one"
        )
    match FAMILIES[family].reads:
        case "tokens":
            return _of_text(family, config, shapes)
        case "pixels":
            return _of_image(family, config, shapes)
        case "patches":
            return _of_ast(config, shapes)
        case "whisper":
            return _of_whisper(config, shapes)
        case "clap":
            return _of_clap(config, shapes)
        case "waveform":
            return _of_waveform(config)


def _sizes(config: ModelConfig, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feedforward,
    }


def _of_text(family: str, config: ModelConfig, shapes: InputShapes) -> dict[str, Any]:
    first = shapes.pad_id + 1 if FAMILIES[family].first_position else 0
    settings = _sizes(config, config.text_layers) | {
        "vocab_size": shapes.vocab_size,
        "pad_token_id": shapes.pad_id,
        "max_position_embeddings": max(POSITIONS, shapes.text_tokens) + first,
    }
    match family:
        case "distilbert":
            settings["hidden_dim"] = settings.pop("intermediate_size")
        case "deberta-v2":
            settings |= {
                "relative_attention": True,
                "position_buckets": 256,
                "norm_rel_ebd": "layer_norm",
                "share_att_key": True,
                "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": False,
                "type_vocab_size": 0,
            }
        case "mpnet":  # its padding has the id 1, whatever the configuration is
            settings["vocab_size"] = max(2, shapes.vocab_size)
            settings["max_position_embeddings"] = max(POSITIONS, shapes.text_tokens) + 2
        case "siglip-text":
            settings |= {"max_position_embeddings": shapes.text_tokens}
            settings |= {"projection_size": config.width}
    if family in ("modernbert", "clip-text", "siglip-text"):  # published ids do not exist here
        settings |= {"bos_token_id": 0, "eos_token_id": 0}
    if family == "modernbert":
        settings |= {"cls_token_id": 0, "sep_token_id": 0}
    return settings


def _of_image(family: str, config: ModelConfig, shapes: InputShapes) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_channels": shapes.image_channels}
    widths = [max(4, config.width // 2**stage) for stage in reversed(range(STAGES))]
    widths[-1] = config.width
    match family:
        case "convnext":
            return settings | {"hidden_sizes": widths, "depths": [config.image_layers] * STAGES}
        case "resnet":
            return settings | {
                "hidden_sizes": widths,
                "embedding_size": widths[0],
                "depths": [config.image_layers] * STAGES,
                "layer_type": "basic",
            }
        case "swin":
            return settings | _of_swin(config, shapes)
    patch = min(config.image_patch, *shapes.image_size)
    settings |= _sizes(config, config.image_layers)
    settings |= {"image_size": max(patch, min(shapes.image_size)), "patch_size": patch}
    if family == "dinov2":
        settings.pop("intermediate_size")
        settings["mlp_ratio"] = max(1, config.feedforward // config.width)
    return settings


def _of_swin(config: ModelConfig, shapes: InputShapes) -> dict[str, Any]:
    """Two stages: the second has twice the width of the first."""
    first, heads = config.width // 2, config.num_heads
    if config.width % 2 or first % heads:
        raise ConfigError(
            f"model.width {config.width} is not a multiple of twice model.num_heads {heads}, which "
            f"random:swin needs. Change one"
        )
    return {
        "embed_dim": first,
        "depths": [config.image_layers] * 2,
        "num_heads": [heads, heads],
        "image_size": min(shapes.image_size),
        "patch_size": min(4, config.image_patch),
        "window_size": 4,
        "mlp_ratio": max(1.0, config.feedforward / config.width),
    }


def _of_ast(config: ModelConfig, shapes: InputShapes) -> dict[str, Any]:
    patch = min(config.audio_patch, shapes.audio_coefficients)
    return _sizes(config, config.audio_layers) | {
        "num_mel_bins": shapes.audio_coefficients,
        "max_length": max(patch, shapes.audio_frames),
        "patch_size": patch,
        "frequency_stride": patch,
        "time_stride": patch,
    }


def _of_whisper(config: ModelConfig, shapes: InputShapes) -> dict[str, Any]:
    return {
        "d_model": config.width,
        "encoder_layers": config.audio_layers,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.feedforward,
        "num_mel_bins": shapes.audio_coefficients,
        "max_source_positions": math.ceil(shapes.audio_frames / 2),
        "vocab_size": 8,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 0,
    }


def _of_clap(config: ModelConfig, shapes: InputShapes) -> dict[str, Any]:
    """One stage over a square picture, which is made of `ratio` parts of the sound."""
    bands, window = shapes.audio_coefficients, 4
    patch = math.gcd(4, bands)
    ratio = 1
    while bands * ratio % (patch * window) or bands * ratio * ratio < shapes.audio_frames:
        ratio += 1
    return {
        "hidden_size": config.width,
        "patch_embeds_hidden_size": config.width,
        "num_mel_bins": bands,
        "spec_size": bands * ratio,
        "patch_size": patch,
        "patch_stride": [patch, patch],
        "window_size": window,
        "depths": [config.audio_layers],
        "num_attention_heads": [config.num_heads],
        "mlp_ratio": max(1.0, config.feedforward / config.width),
    }


def _of_waveform(config: ModelConfig) -> dict[str, Any]:
    """Convolutions have the published kernels and strides: a token is 320 samples."""
    layers = 7
    return _sizes(config, config.audio_layers) | {
        "conv_dim": [config.width] * layers,
        "num_feat_extract_layers": layers,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": config.num_heads,
    }
