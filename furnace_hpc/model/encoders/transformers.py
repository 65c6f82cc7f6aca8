"""Encoders from transformers.

They have random weights in the sizes of the config, or trained weights from a folder or
from the hub's cache. Nothing is downloaded here, because cluster nodes are often offline.

B batch, C channels or coefficients, H height, W width, T tokens or frames, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.convolutions import length_mask
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.weights import (
    check_at_most,
    check_exactly,
    check_vocabulary,
    described,
    dropout_of,
    load_trained,
)

BERT_TOKENS = 512  # BERT's number of positions. Random weights get more for longer texts.


class TextEncoder(nn.Module):
    """BERT from transformers."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        from transformers.models.bert import BertConfig, BertModel

        if config.text_weights:
            self.bert = load_trained(BertModel, "text", config, shapes.architectures)
            limits = self.bert.config
            about, positions = described("text_weights", config), limits.max_position_embeddings
            check_at_most(about, "token ids", shapes.vocab_size, limits.vocab_size)
            check_at_most(about, "tokens per text", shapes.text_tokens, positions)
            if "text" not in shapes.architectures:
                check_vocabulary(about, config.text_weights, shapes.vocabulary)
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

    def forward(
        self, text_BT: Tensor, length_B: Tensor | None, second_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn token ids into (tokens [B, T, D], mask [B, T]).

        Args:
            text_BT: token ids.
            length_B: valid tokens. None if all are valid.
            second_B: of text pairs: the place of the second text's first token.
        """
        mask_BT = length_mask(length_B, text_BT.shape[1], text_BT)
        attention_mask = None if length_B is None else _attention_mask(self.bert, mask_BT)
        output = self.bert(
            input_ids=text_BT,
            attention_mask=attention_mask,
            token_type_ids=token_types(self.bert, mask_BT, second_B),
        )
        return self.project(output.last_hidden_state), mask_BT


class VisionTransformer(nn.Module):
    """ViT from transformers. Its positions are interpolated to the size of the image."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        from transformers.models.vit import ViTConfig, ViTModel

        if config.image_weights:
            self.vit = load_trained(ViTModel, "image", config, shapes.architectures)
            wanted = self.vit.config.num_channels
            about = described("image_weights", config)
            check_exactly(about, "channels", shapes.image_channels, wanted)
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
        """Turn standardised pixels into (tokens [B, T, D], mask [B, T]). The first token is CLS."""
        pixels = image_BCHW.to(self.vit.embeddings.cls_token.dtype)
        tokens_BTD = self.project(self.vit(pixels, interpolate_pos_encoding=True).last_hidden_state)
        return tokens_BTD, tokens_BTD.new_ones(tokens_BTD.shape[:2], dtype=torch.bool)


class AudioTransformer(nn.Module):
    """Audio spectrogram transformer (AST) from transformers. Patches in the padding are masked."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__()
        from transformers.models.audio_spectrogram_transformer import ASTConfig, ASTModel

        if config.audio_weights:
            self.ast = load_trained(ASTModel, "audio", config, shapes.architectures)
            limits = self.ast.config
            about = described("audio_weights", config)
            check_at_most(about, "frames", shapes.audio_frames, limits.max_length)
            check_exactly(about, "bands", shapes.audio_coefficients, limits.num_mel_bins)
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
        """Turn standardised coefficients into (tokens [B, T, D], mask [B, T]).

        The first two tokens are the AST's own: CLS and distillation.
        """
        x_BTC = audio_BCT.transpose(1, 2).to(self.ast.embeddings.cls_token.dtype)
        x_BTC, mask_BT, is_padded = frames_and_mask(x_BTC, length_B, self.ast.config, clear=True)
        attention_mask = _attention_mask(self.ast, mask_BT) if is_padded else None
        tokens_BTD = self.ast(x_BTC, attention_mask=attention_mask).last_hidden_state
        return self.project(tokens_BTD), mask_BT


def token_types(network: Any, mask_BT: Tensor, second_B: Tensor | None) -> Tensor | None:
    """Return 1 for each token of the second text of a pair, else 0.

    None if there are no pairs, or if the network has one token type only.
    """
    if second_B is None or getattr(network.config, "type_vocab_size", 0) < 2:
        return None
    position_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return ((position_T >= second_B.unsqueeze(1)) & mask_BT).long()


def frames_and_mask(
    x_BTC: Tensor, length_B: Tensor | None, settings: Any, clear: bool
) -> tuple[Tensor, Tensor, bool]:
    """The frames that an AST takes, the mask of its tokens, and whether there may be padding.

    Args:
        x_BTC: frames.
        length_B: valid frames. None if all are.
        settings: the configuration of the AST.
        clear: whether zeros replace the frames of the padding.
    """
    valid_BT = length_mask(length_B, x_BTC.shape[1], x_BTC)
    if clear:
        x_BTC = torch.where(valid_BT.unsqueeze(2), x_BTC, torch.zeros_like(x_BTC))
    # A negative number cuts off padding.
    missing = settings.max_length - x_BTC.shape[1]
    x_BTC = functional.pad(x_BTC, (0, 0, 0, missing))
    valid_BT = functional.pad(valid_BT, (0, missing))
    # A patch is valid if its first frame is. The AST orders patches by band, then by time.
    last_start = settings.max_length - settings.patch_size
    bands = (settings.num_mel_bins - settings.patch_size) // settings.frequency_stride + 1
    patches_BT = valid_BT[:, : last_start + 1 : settings.time_stride].repeat(1, bands)
    mask_BT = functional.pad(patches_BT, (2, 0), value=True)
    return x_BTC, mask_BT, length_B is not None or missing > 0


def _attention_mask(network: Any, mask_BT: Tensor) -> Tensor:
    """The mask in the form that a network of transformers takes without waiting for the GPU.

    A mask [B, T] is compared with "all true" on the host in each call. One of four axes is used as
    it is, but attention that is not torch's own would add its values.
    """
    if network.config._attn_implementation != "sdpa":
        return mask_BT.long()
    return mask_BT[:, None, None, :]


def _sizes(config: ModelConfig, layers: int) -> dict[str, int]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feedforward,
    }


def _projection(found: int, width: int) -> nn.Module:
    if found == width:
        return nn.Identity()
    return nn.Linear(found, width)
