"""Convolutional encoders: turn images and MFCC of any size into a few tokens.

B batch, C channels or coefficients, H height, W width, T tokens or frames, D width.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ImageEncoder(nn.Module):
    """Three strided convolutions, pooled to a square of tokens. Any image size works."""

    def __init__(self, channels: int, width: int, num_tokens: int) -> None:
        super().__init__()
        sizes = [channels, max(8, width // 4), max(8, width // 2), width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1, bias=False)
            for a, b in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, size), size) for size in sizes[1:])
        self.position_TD = nn.Parameter(torch.randn(num_tokens, width) * 0.02)

    def forward(self, image_BCHW: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn standardised pixels into (tokens [B, T, D], mask [B, T])."""
        x = image_BCHW.to(self.position_TD.dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
        side = math.isqrt(self.position_TD.shape[0])
        rows = pool_matrix(None, x.shape[2], side, x)
        columns = pool_matrix(None, x.shape[3], side, x)
        tokens_BTD = (rows @ x @ columns.transpose(-1, -2)).flatten(2).transpose(1, 2)
        mask_BT = tokens_BTD.new_ones(tokens_BTD.shape[:2], dtype=torch.bool)
        return tokens_BTD + self.position_TD, mask_BT


class AudioEncoder(nn.Module):
    """Three convolutions over MFCC frames. Padding changes neither valid frames nor statistics."""

    def __init__(self, coefficients: int, width: int, num_tokens: int) -> None:
        super().__init__()
        self.strides = (1, 2, 2)
        sizes = [coefficients, width, width, width]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size=3, stride=stride, padding=1, bias=False)
            for a, b, stride in zip(sizes, sizes[1:], self.strides, strict=False)
        )
        self.norms = nn.ModuleList(MaskedGroupNorm(math.gcd(8, width), width) for _ in self.strides)
        self.position_TD = nn.Parameter(torch.randn(num_tokens, width) * 0.02)

    def forward(self, audio_BCT: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn standardised coefficients into (tokens [B, T, D], mask [B, T])."""
        x = audio_BCT.to(self.position_TD.dtype)
        mask_BT = length_mask(length_B, x.shape[2], x)
        x = x * mask_BT.unsqueeze(1)
        layers = zip(self.convolutions, self.norms, self.strides, strict=True)
        for convolution, norm, stride in layers:
            x = convolution(x)
            mask_BT = mask_BT[:, ::stride]
            x = functional.relu(norm(x, mask_BT)) * mask_BT.unsqueeze(1)
        weights_BkT = pool_matrix(mask_BT.sum(1), x.shape[2], self.position_TD.shape[0], x)
        tokens_BTD = weights_BkT @ x.transpose(1, 2) + self.position_TD
        return tokens_BTD, tokens_BTD.new_ones(tokens_BTD.shape[:2], dtype=torch.bool)


class MaskedGroupNorm(nn.Module):
    """Group normalisation over valid frames only."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCT: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalise. Frames outside the mask are not zero, so the caller must mask them again."""
        B, C, T = x_BCT.shape
        x = x_BCT.float().view(B, self.groups, C // self.groups, T)
        mask = mask_BT.view(B, 1, 1, T).float()
        count = mask.sum((2, 3), keepdim=True).clamp(min=1) * (C // self.groups)
        mean = (x * mask).sum((2, 3), keepdim=True) / count
        variance = ((x - mean).square() * mask).sum((2, 3), keepdim=True) / count
        x = ((x - mean) * torch.rsqrt(variance + 1e-5)).view(B, C, T).to(x_BCT.dtype)
        return x * self.weight.unsqueeze(-1) + self.bias.unsqueeze(-1)


def length_mask(length_B: Tensor | None, size: int, like: Tensor) -> Tensor:
    """Return the mask [B, size] of valid positions.

    Without lengths, all positions are valid. A length of 0 counts as 1.
    """
    if length_B is None:
        return torch.ones(like.shape[0], size, dtype=torch.bool, device=like.device)
    return torch.arange(size, device=like.device) < length_B.clamp(min=1).unsqueeze(1)


def pool_matrix(length_B: Tensor | None, size: int, bins: int, like: Tensor) -> Tensor:
    """Weights [B or 1, bins, size] of adaptive average pooling over the first `length` positions.

    Without lengths, the pooling is over all `size` positions. The caller multiplies by this matrix.
    Torch's own adaptive pooling is not deterministic in backward on CUDA.
    """
    if length_B is None:
        length_B = torch.full((1,), size, dtype=torch.int64, device=like.device)
    bin_k = torch.arange(bins, device=like.device)
    start = (bin_k * length_B.unsqueeze(1)) // bins
    end = ((bin_k + 1) * length_B.unsqueeze(1) + bins - 1) // bins
    position = torch.arange(size, device=like.device)
    inside = (position >= start.unsqueeze(2)) & (position < end.unsqueeze(2))
    return (inside / inside.sum(2, keepdim=True).clamp(min=1)).to(like.dtype)
