"""Fusion of token sequences by attention.

B batch, M modalities, T tokens, K bottleneck tokens, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# checkpoint(function, *tensors) runs the function now, and again in backward
Checkpoint = Callable[..., Any]


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and feed-forward.

    nn.MultiheadAttention does not work here: it reads the weights of its parts without calling
    their forward. ZeRO stage 3 gathers parameters only when a module's forward is called.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward, width),
        )

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Tokens to tokens. No token attends to positions outside the mask.

        None: all positions are valid. Only without a mask does torch use flash attention.
        """
        B, T, D = x_BTD.shape
        parts = self.query_key_value(self.norm_attention(x_BTD))
        parts = parts.view(B, T, 3, self.heads, D // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mask = None if mask_BT is None else mask_BT.view(B, 1, 1, T)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x_BTD = x_BTD + self._drop(self.project(attended.transpose(1, 2).reshape(B, T, D)))
        return x_BTD + self._drop(self.feedforward(self.norm_feedforward(x_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class CrossAttentionFusion(nn.Module):
    """The [CLS] token and all modalities' tokens attend to each other. The output is CLS.

    Attention does not see the modality of a token, so each modality adds its own embedding.
    """

    def __init__(
        self, modalities: int, width: int, layers: int, heads: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.cls_D = nn.Parameter(torch.randn(width) * 0.02)
        self.modality_MD = nn.Parameter(torch.randn(modalities, width) * 0.02)
        self.blocks = nn.ModuleList(
            AttentionBlock(width, heads, feedforward, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens: list[Tensor],
        masks: list[Tensor],
        checkpoint: Checkpoint | None,
        complete: Sequence[bool] = (False,),
    ) -> Tensor:
        """Fuse tokens [B, T, D] and masks [B, T] per modality into one vector [B, D].

        Args:
            tokens: of each modality.
            masks: of each modality.
            checkpoint: runs a block and recomputes it in backward.
            complete: of each modality, whether it is known that its mask is all true.
        """
        B = tokens[0].shape[0]
        cls_B1D = self.cls_D.expand(B, 1, -1)
        embedded = [part + self.modality_MD[m] for m, part in enumerate(tokens)]
        x_BTD = torch.cat([cls_B1D, *embedded], dim=1)
        mask_BT = None
        if not all(complete):
            # CLS is always in the mask: a row without any valid position would be NaN.
            mask_BT = torch.cat([masks[0].new_ones(B, 1), *masks], dim=1)
        run_block = _block_runner(checkpoint, self.training)
        for block in self.blocks:
            x_BTD = run_block(block, x_BTD, mask_BT)
        fused_BD: Tensor = self.norm(x_BTD[:, 0])
        return fused_BD


class BottleneckFusion(nn.Module):
    """Attention bottlenecks (Nagrani et al. 2021): modalities interact only through shared tokens.

    In each layer, each modality's tokens and the bottleneck tokens attend to each other. The new
    bottleneck is the mean of the modalities' versions of it. The output is the mean over modalities
    of their pooled tokens. Without layers this is late fusion. An absent modality is masked in
    attention and left out of both means.
    """

    def __init__(
        self,
        modalities: int,
        width: int,
        layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
        bottleneck: int,
    ) -> None:
        super().__init__()
        self.bottleneck_KD = nn.Parameter(torch.randn(bottleneck, width) * 0.02) if layers else None
        self.layers = nn.ModuleList(
            nn.ModuleList(
                AttentionBlock(width, heads, feedforward, dropout) for _ in range(modalities)
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if layers else nn.Identity()

    def forward(
        self,
        tokens: list[Tensor],
        masks: list[Tensor],
        present_BM: Tensor,
        checkpoint: Checkpoint | None,
        complete: Sequence[bool] = (),
    ) -> Tensor:
        """Fuse tokens [B, T, D] and masks [B, T] per modality into one vector [B, D].

        Args:
            tokens: of each modality.
            masks: of each modality.
            present_BM: whether each sample has each modality.
            checkpoint: runs a block and recomputes it in backward.
            complete: of each modality, whether it is known that its mask is all true.
        """
        complete = complete or [False] * len(tokens)
        run_block = _block_runner(checkpoint, self.training)
        B, K = present_BM.shape[0], 0
        if self.bottleneck_KD is not None:
            shared_BKD, K = self.bottleneck_KD.expand(B, -1, -1), self.bottleneck_KD.shape[0]
        for blocks in self.layers:
            updates = []
            for m, block in enumerate(cast(nn.ModuleList, blocks)):
                mask_BT = None
                if not complete[m]:
                    mask_BT = torch.cat([masks[m].new_ones(B, K), masks[m]], dim=1)
                x_BTD = run_block(block, torch.cat([shared_BKD, tokens[m]], dim=1), mask_BT)
                updates.append(x_BTD[:, :K])
                tokens = [*tokens[:m], x_BTD[:, K:], *tokens[m + 1 :]]
            stacked = torch.stack(updates, dim=1)
            shared_BKD = masked_mean(stacked.flatten(2), present_BM).view_as(shared_BKD)
        pooled = [
            masked_mean(self.norm(part), mask) for part, mask in zip(tokens, masks, strict=True)
        ]
        return masked_mean(torch.stack(pooled, dim=1), present_BM)


def masked_mean(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean [B, D] over the positions in the mask, or zero if the mask is empty."""
    weights_BT = mask_BT.to(x_BTD.dtype)
    return (x_BTD * weights_BT.unsqueeze(2)).sum(1) / weights_BT.sum(1, keepdim=True).clamp(min=1)


def _block_runner(checkpoint: Checkpoint | None, training: bool) -> Checkpoint:
    if checkpoint and training:
        return checkpoint
    return _call


def _call(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
    return function(*tensors)
