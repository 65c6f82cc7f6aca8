"""Tensor Fusion (Zadeh et al. 2017, section 4.2): the outer product of all modalities.

A constant 1 is put before each modality's vector. The outer product of these extended vectors then
contains every vector itself, every product of two of them, and every product of three.

    z = [1; z_text] x [1; z_image] x [1; z_audio]

An absent modality keeps the 1 alone. Its part of the product is zero, and the rest of z is the
tensor of the modalities that are present.

B batch, M modalities, D width, K size of a reduced vector.
"""

import torch
from torch import Tensor, nn

from furnace_hpc.model.own_code.contracts import FusionContext


class TensorFusion(nn.Module):
    """Fuse by the outer product, then by fully connected layers.

    Args:
        context: the row's modalities and sizes.
        size: K. The product has (K + 1)^M numbers, so the vectors are reduced first.
        hidden: width of the layers after the product.
        dropout: of the product, as in the paper.
    """

    def __init__(
        self, context: FusionContext, size: int = 8, hidden: int = 64, dropout: float = 0.15
    ) -> None:
        super().__init__()
        self.reduced = nn.ModuleList(
            nn.Sequential(nn.Linear(context.width, size), nn.Tanh()) for _ in context.modalities
        )
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear((size + 1) ** len(context.modalities), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, context.width),
        )

    def forward(
        self, features_BMD: Tensor, present_BM: Tensor, tokens: list[Tensor], masks: list[Tensor]
    ) -> Tensor:
        """Return the fused vectors [B, D]."""
        fused_BD: Tensor = self.layers(self.product(features_BMD, present_BM))
        return fused_BD

    def product(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Return the outer product of the extended vectors [B, (K + 1)^M]."""
        one_B1 = torch.ones_like(features_BMD[:, 0, :1])
        product = one_B1
        for m, reduced in enumerate(self.reduced):
            present_B1 = present_BM[:, m : m + 1].to(features_BMD.dtype)
            extended = torch.cat([one_B1, reduced(features_BMD[:, m]) * present_B1], dim=1)
            product = (product.unsqueeze(2) * extended.unsqueeze(1)).flatten(1)
        return product
