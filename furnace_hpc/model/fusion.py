"""Fusion: how the modalities' tokens meet.

B batch, T tokens, D width, H heads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Checkpoint = Callable[..., Any]  # called as checkpoint(function, *tensors): runs it now, and again in backward


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and feed-forward.

    Written out of nn.Linear, since ZeRO stage 3 gathers parameters when a module's forward is called, and
    nn.MultiheadAttention reads the weights of its parts without calling them.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Tokens to tokens; positions outside the mask are attended to by nobody."""
        B, T, D = x_BTD.shape
        parts = self.query_key_value(self.norm_attention(x_BTD)).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask_BT.view(B, 1, 1, T))
        x_BTD = x_BTD + self._drop(self.project(attended.transpose(1, 2).reshape(B, T, D)))
        return x_BTD + self._drop(self.feedforward(self.norm_feedforward(x_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class CrossAttentionFusion(nn.Module):
    """[CLS] and all modalities' tokens attend to each other; CLS comes out.

    Attention alone cannot know which token comes from where, so each modality adds an embedding of its own.
    """

    def __init__(self, modalities: int, width: int, layers: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.cls_D = nn.Parameter(torch.randn(width) * 0.02)
        self.modality_MD = nn.Parameter(torch.randn(modalities, width) * 0.02)
        self.blocks = nn.ModuleList(AttentionBlock(width, heads, feedforward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: list[Tensor], masks: list[Tensor], checkpoint: Checkpoint | None) -> Tensor:
        """Tokens [B, T, D] and masks [B, T] per modality to one vector [B, D]."""
        B = tokens[0].shape[0]
        cls_B1D = self.cls_D.expand(B, 1, -1)
        named = [part + self.modality_MD[m] for m, part in enumerate(tokens)]
        x_BTD = torch.cat([cls_B1D, *named], dim=1)
        # CLS is always there: a row with nothing to attend to would be NaN.
        mask_BT = torch.cat([masks[0].new_ones(B, 1), *masks], dim=1)
        for block in self.blocks:
            x_BTD = checkpoint(block, x_BTD, mask_BT) if checkpoint and self.training else block(x_BTD, mask_BT)
        fused_BD: Tensor = self.norm(x_BTD[:, 0])
        return fused_BD
