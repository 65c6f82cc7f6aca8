"""Fusion of pooled features, one vector per modality. attention.py fuses token sequences.

Each class describes what it does for an absent modality, whose features are zeros here.

B batch, M modalities, D width, R rank.
"""

import torch
from torch import Tensor, nn


class ConcatFusion(nn.Module):
    """Concatenate all features and apply a multi-layer perceptron.

    A learnt vector replaces an absent modality. A presence bit per modality marks it, because
    zeros are also a valid value.
    """

    def __init__(self, modalities: int, width: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.absent_MD = nn.Parameter(torch.randn(modalities, width) * 0.02)
        self.layers = nn.Sequential(
            nn.Linear(modalities * (width + 1), feedforward),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward, width),
        )

    def forward(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Fuse features and presence into one vector [B, D]."""
        slots_BMD = torch.where(present_BM.unsqueeze(2), features_BMD, self.absent_MD)
        bits_BM = present_BM.to(slots_BMD.dtype)
        fused_BD: Tensor = self.layers(torch.cat([slots_BMD.flatten(1), bits_BM], dim=1))
        return fused_BD


class GatedFusion(nn.Module):
    """Gated multimodal unit (Arevalo et al. 2017) for any number of modalities.

    The gates are a softmax per feature. The softmax leaves out absent modalities, so the gates of
    the present ones sum to one.
    """

    def __init__(self, modalities: int, width: int) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in range(modalities)
        )
        self.gate = nn.Linear(modalities * width, modalities * width, bias=False)

    def gates(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Return gates [B, M, D]. They are zero for absent modalities and sum to one over M."""
        logits_BMD = self.gate(features_BMD.flatten(1)).view_as(features_BMD)
        masked_BMD = logits_BMD.masked_fill(~present_BM.unsqueeze(2), float("-inf"))
        gates_BMD: Tensor = masked_BMD.softmax(dim=1)
        return gates_BMD

    def forward(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Fuse features and presence into one vector [B, D]."""
        hidden = [transform(features_BMD[:, m]) for m, transform in enumerate(self.transforms)]
        return (self.gates(features_BMD, present_BM) * torch.stack(hidden, dim=1).tanh()).sum(1)


class LowRankFusion(nn.Module):
    """Low-rank multimodal fusion (Liu et al. 2018).

    It contracts the outer product of all [1; x_m] with a tensor of rank R without building
    either. The result is a product over modalities, summed over the rank. An absent modality keeps
    only the constant 1 of [1; x_m]. That gives the tensor fusion of the present modalities.
    """

    def __init__(self, modalities: int, width: int, rank: int) -> None:
        super().__init__()
        self.factor_MRDD = nn.Parameter(
            torch.randn(modalities, rank, width + 1, width) * width**-0.5
        )
        self.weight_R = nn.Parameter(torch.full((rank,), rank**-0.5))
        self.bias_D = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            # The factors of the constant 1. An absent modality then does not scale the product.
            self.factor_MRDD[:, :, 0] = 1.0

    def forward(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Fuse features and presence into one vector [B, D]."""
        present_BM1 = present_BM.to(features_BMD.dtype).unsqueeze(2)
        linear_BMRD = torch.einsum(
            "bmi,mrid->bmrd", features_BMD * present_BM1, self.factor_MRDD[:, :, 1:]
        )
        product_BRD = (linear_BMRD + self.factor_MRDD[:, :, 0]).prod(dim=1)
        return torch.einsum("brd,r->bd", product_BRD, self.weight_R) + self.bias_D
