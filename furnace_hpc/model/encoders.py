"""Encoders: each turns one modality into a sequence of tokens and says which of them count.

The transformers have random weights in the sizes of the config, or trained ones of a folder or of the hub's cache;
nothing is ever downloaded here, since the nodes of a cluster are often offline.

B batch, C channels or coefficients, H height, W width, T tokens or frames, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.model_config import ModelConfig
from furnace_hpc.data.decode.tokenizer import vocabulary_of
from furnace_hpc.model.convolutions import AudioEncoder, ImageEncoder, length_mask
from furnace_hpc.model.weights import check_fits, check_vocabulary, dropout_of, trained

BERT_TOKENS = 512  # places of BERT's own; where the weights are random, longer texts get more


@dataclass(frozen=True)
class InputShapes:
    """What the encoders need to know of the data."""

    vocab_size: int
    pad_id: int
    image_channels: int
    audio_coefficients: int
    image_size: tuple[int, int] = (32, 32)
    audio_frames: int = 32
    text_tokens: int = 0
    vocabulary: str | None = None
    """Fingerprint of the words that the token ids stand for; None: the data set does not say."""
    architectures: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Modality -> transformers' configuration of an encoder of trained weights, where all weights come later."""

    @classmethod
    def of(
        cls, manifest: Manifest, architectures: Mapping[str, dict[str, Any]] | None = None
    ) -> "InputShapes":
        """The shapes of a packed data set."""
        channels, height, width = (
            manifest.columns["image"].shape[-3:] if "image" in manifest.columns else (0, 0, 0)
        )
        coefficients, frames = (
            manifest.columns["audio"].shape if "audio" in manifest.columns else (0, 0)
        )
        return cls(
            vocab_size=manifest.vocab_size or 0,
            pad_id=manifest.pad_id,
            image_channels=channels,
            audio_coefficients=coefficients,
            image_size=(height, width),
            audio_frames=frames,
            text_tokens=manifest.columns["text"].shape[0] if "text" in manifest.columns else 0,
            vocabulary=vocabulary_of(manifest),
            architectures=architectures or {},
        )


class TextEncoder(nn.Module):
    """BERT by transformers."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        from transformers.models.bert import BertConfig, BertModel

        if config.text_weights:
            self.bert = trained(BertModel, "text", config, shapes.architectures)
            made_for = self.bert.config
            check_fits("text_weights", config, "token ids", shapes.vocab_size, made_for.vocab_size)
            check_fits(
                "text_weights",
                config,
                "tokens a text",
                shapes.text_tokens,
                made_for.max_position_embeddings,
            )
            if "text" not in shapes.architectures:
                check_vocabulary(config.text_weights, shapes.vocabulary)
        else:
            text = BertConfig(
                vocab_size=shapes.vocab_size,
                pad_token_id=shapes.pad_id,
                max_position_embeddings=max(BERT_TOKENS, shapes.text_tokens),
                use_cache=False,
                **_sizes(config, config.text_layers),
                **dropout_of(config),
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
            self.vit = trained(ViTModel, "image", config, shapes.architectures)
            check_fits(
                "image_weights",
                config,
                "channels",
                shapes.image_channels,
                self.vit.config.num_channels,
                exact=True,
            )
        else:
            image = ViTConfig(
                image_size=max(config.image_patch, min(shapes.image_size)),
                patch_size=config.image_patch,
                num_channels=shapes.image_channels,
                **_sizes(config, config.image_layers),
                **dropout_of(config),
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
            self.ast = trained(ASTModel, "audio", config, shapes.architectures)
            made_for = self.ast.config
            check_fits("audio_weights", config, "frames", shapes.audio_frames, made_for.max_length)
            check_fits(
                "audio_weights",
                config,
                "bands",
                shapes.audio_coefficients,
                made_for.num_mel_bins,
                exact=True,
            )
        else:
            patch = min(config.audio_patch, shapes.audio_coefficients)
            audio = ASTConfig(
                num_mel_bins=shapes.audio_coefficients,
                max_length=max(patch, shapes.audio_frames),
                patch_size=patch,
                frequency_stride=patch,
                time_stride=patch,
                **_sizes(config, config.audio_layers),
                **dropout_of(config),
            )
            self.ast = ASTModel(audio)
        self.project = _projection(self.ast.config.hidden_size, config.width)

    def forward(self, audio_BCT: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standardised coefficients to (tokens [B, T, D], mask [B, T]); the first two are the AST's own."""
        made_for = self.ast.config
        x_BTC = audio_BCT.transpose(1, 2).to(self.ast.embeddings.cls_token.dtype)
        valid_BT = length_mask(length_B, x_BTC.shape[1], x_BTC)
        x_BTC = torch.where(valid_BT.unsqueeze(2), x_BTC, torch.zeros_like(x_BTC))
        # negative: padding beyond what the whole set needs
        missing = made_for.max_length - x_BTC.shape[1]
        x_BTC, valid_BT = (
            functional.pad(x_BTC, (0, 0, 0, missing)),
            functional.pad(valid_BT, (0, missing)),
        )
        # The first frame of each patch says whether it counts; patches go through all times of one
        # band, then the next.
        starts = torch.arange(
            0, made_for.max_length - made_for.patch_size + 1, made_for.time_stride
        )
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


def _projection(found: int, width: int) -> nn.Module:
    return nn.Identity() if found == width else nn.Linear(found, width)
