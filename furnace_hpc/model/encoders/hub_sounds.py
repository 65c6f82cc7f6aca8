"""Audio encoders of the hub.

B batch, C bands, F frames, S samples, T tokens, D width.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.encoders.convolutions import MaskedGroupNorm, length_mask
from furnace_hpc.model.encoders.hub import HubEncoder
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.transformers import frames_and_mask
from furnace_hpc.model.encoders.weights import check_at_most, check_exactly

SILENCE = 2.0  # below its loudest value, Whisper's features have no smaller values


class PatchEncoder(HubEncoder):
    """Audio spectrogram transformer (AST).

    Trained weights see the padding, as in their training. With random weights, no token attends to
    patches of the padding.
    """

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__("audio", config, shapes)
        limits = self.network.config
        check_exactly(self.about, "bands", shapes.audio_coefficients, limits.num_mel_bins)
        if not self.is_random:
            check_exactly(self.about, "frames", shapes.audio_frames, limits.max_length)

    def forward(self, audio_BCF: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn features into (tokens [B, T, D], mask [B, T])."""
        settings = self.network.config
        x_BFC = audio_BCF.transpose(1, 2).to(self.network.dtype)
        x_BFC, mask_BT, padded = frames_and_mask(x_BFC, length_B, settings, clear=self.is_random)
        attention_mask = None
        if padded and self.is_random:
            attention_mask = self.for_attention(mask_BT[:, None, None, :])
        tokens_BTD = self.network(x_BFC, attention_mask=attention_mask).last_hidden_state
        return self.project(tokens_BTD), mask_BT


class WhisperEncoder(HubEncoder):
    """Encoder of Whisper. Its input always has the same number of frames."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__("audio", config, shapes)
        limits = self.network.config
        self.frames = 2 * limits.max_source_positions
        check_exactly(self.about, "bands", shapes.audio_coefficients, limits.num_mel_bins)
        check_at_most(self.about, "frames", shapes.audio_frames, self.frames)

    def forward(self, audio_BCF: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn features into (tokens [B, T, D], mask [B, T]). A token is two frames."""
        x_BCF = audio_BCF.to(self.network.dtype)
        valid_BF = length_mask(length_B, x_BCF.shape[2], x_BCF)
        if missing := self.frames - x_BCF.shape[2]:
            silence_B11 = x_BCF.amax((1, 2), keepdim=True) - SILENCE
            silence = silence_B11.expand(-1, x_BCF.shape[1], missing)
            x_BCF = torch.cat([x_BCF, silence], dim=2)
            valid_BF = functional.pad(valid_BF, (0, missing))
        tokens_BTD = self.network(x_BCF).last_hidden_state
        return self.project(tokens_BTD), valid_BF[:, ::2]


class ClapEncoder(HubEncoder):
    """Audio encoder of CLAP. Each pixel of its feature map is a token."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__("audio", config, shapes)
        limits = self.network.config
        self.frames = limits.spec_size * (limits.spec_size // limits.num_mel_bins)
        check_exactly(self.about, "bands", shapes.audio_coefficients, limits.num_mel_bins)
        check_at_most(self.about, "frames", shapes.audio_frames, self.frames)

    def forward(self, audio_BCF: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn features into (tokens [B, T, D], mask [B, T])."""
        x_B1FC = audio_BCF.transpose(1, 2).unsqueeze(1)
        if x_B1FC.shape[2] < self.frames:
            # The network would do the same after its first layer. There, the backward pass of the
            # interpolation is not deterministic on GPUs.
            size = (self.frames, x_B1FC.shape[3])
            x_B1FC = functional.interpolate(x_B1FC, size, mode="bicubic", align_corners=True)
        found_BDCF = self.network(x_B1FC.to(self.network.dtype)).last_hidden_state
        tokens_BTD = self.project(found_BDCF.flatten(2).transpose(1, 2))
        return tokens_BTD, tokens_BTD.new_ones(tokens_BTD.shape[:2], dtype=torch.bool)


class WaveformEncoder(HubEncoder):
    """wav2vec 2.0 and its relatives. Padding changes no token of a sound."""

    def __init__(self, config: ModelConfig, shapes: InputShapes) -> None:
        super().__init__("audio", config, shapes)
        if shapes.audio_coefficients:
            raise ConfigError(
                f"{self.about} takes waveforms, and the data set has features of "
                f"{shapes.audio_coefficients} bands. Choose another encoder, or pack waveforms"
            )
        shortest = _shortest_waveform(self.network.config)
        if shapes.audio_frames < shortest:
            raise ConfigError(
                f"{self.about} takes waveforms of at least {shortest} samples, and the data set "
                f"has {shapes.audio_frames}. Choose other weights, or pack longer sounds"
            )
        self.shortest = shortest
        first = self.network.feature_extractor.conv_layers[0]
        self.norm_over_time = isinstance(getattr(first, "layer_norm", None), nn.GroupNorm)
        if self.norm_over_time:
            first.layer_norm = _masked(first.layer_norm)

    def forward(self, audio_BS: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn waveforms [B, S] or [B, 1, S] into (tokens [B, T, D], mask [B, T])."""
        x_BS = audio_BS.flatten(1).to(self.network.dtype)
        if (missing := self.shortest - x_BS.shape[1]) > 0:
            x_BS = functional.pad(x_BS, (0, missing))
        features_BTD = self._convolve(x_BS, length_B).transpose(1, 2)
        frames_B = None
        if length_B is not None:
            length_B = length_B.clamp(min=self.shortest)
            frames_B = self.network._get_feat_extract_output_lengths(length_B)
        mask_BT = length_mask(frames_B, features_BTD.shape[1], features_BTD)
        projected = self.network.feature_projection(features_BTD)
        hidden_BTD = projected[0] if isinstance(projected, tuple) else projected
        if self.family.network == "WavLMModel":  # its attention makes no host wait
            output = self.network.encoder(
                hidden_BTD, attention_mask=None if length_B is None else mask_BT
            )
            return self.project(output.last_hidden_state), mask_BT
        return self.project(self._attend(hidden_BTD, mask_BT, length_B is not None)), mask_BT

    def _convolve(self, x_BS: Tensor, length_B: Tensor | None) -> Tensor:
        """Features [B, D, T] of the convolutions."""
        x = x_BS.unsqueeze(1)
        first, *others = self.network.feature_extractor.conv_layers
        if self.norm_over_time:
            x = first.conv(x)
            frames_B = None
            if length_B is not None:
                kernel, stride = (
                    self.network.config.conv_kernel[0],
                    self.network.config.conv_stride[0],
                )
                length_B = length_B.clamp(min=self.shortest)
                frames_B = torch.div(length_B - kernel, stride, rounding_mode="floor") + 1
            x = first.activation(first.layer_norm(x, length_mask(frames_B, x.shape[2], x)))
        else:
            x = first(x)
        for layer in others:
            x = layer(x)
        return cast(Tensor, x)

    def _attend(self, x_BTD: Tensor, mask_BT: Tensor, padded: bool) -> Tensor:
        """What the network's encoder does, with a mask that makes no host wait for the GPU."""
        encoder = self.network.encoder
        attention_mask = None
        if padded:
            x_BTD = torch.where(mask_BT.unsqueeze(2), x_BTD, torch.zeros_like(x_BTD))
            attention_mask = self.for_attention(mask_BT[:, None, None, :])
        x_BTD = x_BTD + encoder.pos_conv_embed(x_BTD)
        norm_is_last = self.network.config.do_stable_layer_norm
        if not norm_is_last:
            x_BTD = encoder.layer_norm(x_BTD)
        x_BTD = encoder.dropout(x_BTD)
        for layer in encoder.layers:
            x_BTD = layer(x_BTD, attention_mask=attention_mask)
        return cast(Tensor, encoder.layer_norm(x_BTD) if norm_is_last else x_BTD)


def _masked(norm: nn.GroupNorm) -> MaskedGroupNorm:
    """The same normalisation, over valid frames only."""
    masked = MaskedGroupNorm(norm.num_groups, norm.num_channels)
    masked.weight, masked.bias = norm.weight, norm.bias
    return masked


def _shortest_waveform(settings: Any) -> int:
    """Samples that give one token."""
    samples = 1
    layers = zip(reversed(settings.conv_kernel), reversed(settings.conv_stride), strict=True)
    for kernel, stride in layers:
        samples = (samples - 1) * stride + kernel
    return samples
