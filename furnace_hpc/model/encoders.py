"""Encoders: each turns one modality into a sequence of tokens and says which of them count.

The transformers have random weights in the sizes of the config, or trained ones of a folder or of the hub's cache;
nothing is ever downloaded here, since the nodes of a cluster are often offline.

B batch, C channels or coefficients, H height, W width, T tokens or frames, D width.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.model.convolutions import AudioEncoder, ImageEncoder, length_mask
from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.manifest import Manifest
from furnace_hpc.spec.model_config import ModelConfig


@dataclass(frozen=True)
class InputShapes:
    """What the encoders need to know of the data."""

    vocab_size: int
    pad_id: int
    image_channels: int
    audio_coefficients: int
    image_size: tuple[int, int] = (32, 32)
    audio_frames: int = 32
    architectures: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Modality -> transformers' configuration of an encoder of trained weights, where all weights come later."""

    @classmethod
    def of(cls, manifest: Manifest, architectures: Mapping[str, dict[str, Any]] | None = None) -> "InputShapes":
        """The shapes of a packed data set."""
        channels, height, width = manifest.columns["image"].shape[-3:] if "image" in manifest.columns else (0, 0, 0)
        coefficients, frames = manifest.columns["audio"].shape if "audio" in manifest.columns else (0, 0)
        size, more = (height, width), architectures or {}
        return cls(manifest.vocab_size or 0, manifest.pad_id, channels, coefficients, size, frames, more)


class TextEncoder(nn.Module):
    """BERT by transformers."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        from transformers.models.bert import BertConfig, BertModel

        if config.text_weights:
            self.bert = _trained(BertModel, config.text_weights, "text", config, shapes)
            _check("text_weights", config, "token ids", shapes.vocab_size, self.bert.config.vocab_size)
        else:
            sizes = _sizes(config, config.text_layers)
            text = BertConfig(
                vocab_size=shapes.vocab_size, pad_token_id=shapes.pad_id, use_cache=False, **sizes, **_dropout(config)
            )
            self.bert = BertModel(text, add_pooling_layer=False)
        self.project = _projection(self.bert.config.hidden_size, config.width)

    def forward(self, text_BT: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Token ids to (tokens [B, T, D], mask [B, T])."""
        mask_BT = length_mask(length_B, text_BT.shape[1], text_BT)
        output = self.bert(input_ids=text_BT, attention_mask=mask_BT.long())
        return self.project(output.last_hidden_state), mask_BT


class VisionTransformer(nn.Module):
    """ViT by transformers; its positions are interpolated where the image has another size than it was made for."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        from transformers.models.vit import ViTConfig, ViTModel

        if config.image_weights:
            self.vit = _trained(ViTModel, config.image_weights, "image", config, shapes)
            _check("image_weights", config, "channels", shapes.image_channels, self.vit.config.num_channels, exact=True)
        else:
            image = ViTConfig(
                image_size=max(config.image_patch, min(shapes.image_size)),
                patch_size=config.image_patch,
                num_channels=shapes.image_channels,
                **_sizes(config, config.image_layers),
                **_dropout(config),
            )
            self.vit = ViTModel(image, add_pooling_layer=False)
        self.project = _projection(self.vit.config.hidden_size, config.width)

    def forward(self, image_BCHW: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standardised pixels to (tokens [B, T, D], mask [B, T]); the first token is the ViT's own CLS."""
        pixels = image_BCHW.to(self.vit.embeddings.cls_token.dtype)
        tokens_BTD = self.project(self.vit(pixels, interpolate_pos_encoding=True).last_hidden_state)
        return tokens_BTD, tokens_BTD.new_ones(tokens_BTD.shape[:2], dtype=torch.bool)


class AudioTransformer(nn.Module):
    """Audio spectrogram transformer by transformers; patches that lie in the padding are attended to by nobody."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        from transformers.models.audio_spectrogram_transformer import ASTConfig, ASTModel

        if config.audio_weights:
            self.ast = _trained(ASTModel, config.audio_weights, "audio", config, shapes)
            made_for = self.ast.config
            _check("audio_weights", config, "frames", shapes.audio_frames, made_for.max_length)
            _check("audio_weights", config, "bands", shapes.audio_coefficients, made_for.num_mel_bins, exact=True)
        else:
            patch = min(config.audio_patch, shapes.audio_coefficients)
            audio = ASTConfig(
                num_mel_bins=shapes.audio_coefficients,
                max_length=max(patch, shapes.audio_frames),
                patch_size=patch,
                frequency_stride=patch,
                time_stride=patch,
                **_sizes(config, config.audio_layers),
                **_dropout(config),
            )
            self.ast = ASTModel(audio)
        self.project = _projection(self.ast.config.hidden_size, config.width)

    def forward(self, audio_BCT: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standardised coefficients to (tokens [B, T, D], mask [B, T]); the first two are the AST's own."""
        made_for = self.ast.config
        x_BTC = audio_BCT.transpose(1, 2).to(self.ast.embeddings.cls_token.dtype)
        valid_BT = length_mask(length_B, x_BTC.shape[1], x_BTC)
        x_BTC = torch.where(valid_BT.unsqueeze(2), x_BTC, torch.zeros_like(x_BTC))
        missing = made_for.max_length - x_BTC.shape[1]  # negative: padding beyond what the whole set needs
        x_BTC, valid_BT = functional.pad(x_BTC, (0, 0, 0, missing)), functional.pad(valid_BT, (0, missing))
        # The first frame of each patch says whether it counts; patches go through all times of one band, then the next.
        starts = torch.arange(0, made_for.max_length - made_for.patch_size + 1, made_for.time_stride)
        bands = (made_for.num_mel_bins - made_for.patch_size) // made_for.frequency_stride + 1
        patches_BT = valid_BT[:, starts.to(valid_BT.device)].repeat(1, bands)
        mask_BT = functional.pad(patches_BT, (2, 0), value=True)
        tokens_BTD = self.ast(x_BTC, attention_mask=mask_BT.long()).last_hidden_state
        return self.project(tokens_BTD), mask_BT


def make_encoder(name: str, config: ModelConfig, shapes: InputShapes) -> nn.Module:
    """The encoder of a modality, as the config says.

    Raises:
        ConfigError: weights that are not there, or do not fit the data.
    """
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


def _sizes(config: ModelConfig, layers: int) -> dict[str, int]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feedforward,
    }


def _dropout(config: ModelConfig) -> dict[str, float]:
    # None in attention: that keeps torch's fused attention, on CPU too.
    return {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0}


def _projection(found: int, width: int) -> nn.Module:
    return nn.Identity() if found == width else nn.Linear(found, width)


def architectures(encoders: nn.ModuleDict, config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Modality -> transformers' configuration of each encoder that began with trained weights."""
    found = {}
    for name, part in (("text", "bert"), ("image", "vit"), ("audio", "ast")):
        if name in encoders and getattr(config, f"{name}_weights"):
            found[name] = json.loads(getattr(encoders[name], part).config.to_json_string(use_diff=False))
    return found


def _trained(kind: Any, name: str, modality: str, config: ModelConfig, shapes: InputShapes) -> Any:
    """A transformers model with the weights of a folder or of the hub's cache.

    Raises:
        ConfigError: they are not there, or are another model's.
    """
    key, more = f"{modality}_weights", {} if kind.__name__ == "ASTModel" else {"add_pooling_layer": False}
    if modality in shapes.architectures:
        return kind(kind.config_class.from_dict(shapes.architectures[modality]), **more)
    try:
        model, loading = kind.from_pretrained(
            name, local_files_only=True, output_loading_info=True, dtype=torch.float32, **_dropout(config), **more
        )
    except (OSError, ValueError) as error:
        what = "has no model that can be read" if Path(name).is_dir() else "is no folder, and not in the hub's cache"
        raise ConfigError(
            f"model.{key} {name!r} {what} ({str(error).splitlines()[0]}): runs download nothing; fetch it where there "
            f"is a network (`hf download {name}`), or give the path of a folder with config.json and model.safetensors"
        ) from None
    if lacking := sorted(loading["missing_keys"]):
        raise ConfigError(f"model.{key} {name!r} lacks {len(lacking)} weights of {kind.__name__}, such as {lacking[0]}")
    return model


def _check(key: str, config: ModelConfig, what: str, found: int, made_for: int, exact: bool = False) -> None:
    """Raise ConfigError where the data is not what trained weights were made for."""
    if found != made_for if exact else found > made_for:
        raise ConfigError(
            f"model.{key} {getattr(config, key)!r} is made for {made_for} {what}, and the data set has {found}: "
            f"choose other weights, or pack the data for these"
        )
