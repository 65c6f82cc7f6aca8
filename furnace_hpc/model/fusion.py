"""Fusion of pooled features, one vector a modality; that of token sequences is in attention.py.

Each has its own rule for a modality that is absent; its features are zeros when they come here.

B batch, M modalities, D width, R rank.
"""

import torch
from torch import Tensor, nn


class ConcatFusion(nn.Module):
    """All features side by side, through a multi-layer perceptron.

    Absent: a learnt vector stands in, and a presence bit per modality says so (zeros are a value like any other).
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
        """Features and presence to one vector [B, D]."""
        slots_BMD = torch.where(present_BM.unsqueeze(2), features_BMD, self.absent_MD)
        fused_BD: Tensor = self.layers(
            torch.cat([slots_BMD.flatten(1), present_BM.to(slots_BMD.dtype)], dim=1)
        )
        return fused_BD


class GatedFusion(nn.Module):
    """Gated multimodal unit (Arevalo et al. 2017), of any number of modalities: a softmax of gates, per feature.

    Absent: the softmax is over the present modalities, so the gates always sum to one over what is there.
    """

    def __init__(self, modalities: int, width: int) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in range(modalities)
        )
        self.gate = nn.Linear(modalities * width, modalities * width, bias=False)

    def gates(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Gates [B, M, D]: zero where absent, and summing to one over M."""
        logits_BMD = self.gate(features_BMD.flatten(1)).view_as(features_BMD)
        gates_BMD: Tensor = logits_BMD.masked_fill(~present_BM.unsqueeze(2), float("-inf")).softmax(
            dim=1
        )
        return gates_BMD

    def forward(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Features and presence to one vector [B, D]."""
        hidden = [transform(features_BMD[:, m]) for m, transform in enumerate(self.transforms)]
        return (self.gates(features_BMD, present_BM) * torch.stack(hidden, dim=1).tanh()).sum(1)


class LowRankFusion(nn.Module):
    """Low-rank multimodal fusion (Liu et al. 2018): the outer product of all [1; x_m], times a tensor of rank R.

    The tensor is never made: its product with the weights is a product over modalities, summed over the rank.
    Absent: only the constant 1 of [1; x_m] is left, which is the tensor fusion of those that are there.
    """

    def __init__(self, modalities: int, width: int, rank: int) -> None:
        super().__init__()
        self.factor_MRDD = nn.Parameter(
            torch.randn(modalities, rank, width + 1, width) * width**-0.5
        )
        self.weight_R = nn.Parameter(torch.full((rank,), rank**-0.5))
        self.bias_D = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.factor_MRDD[:, :, 0] = 1.0  # so that a modality alone passes through

    def forward(self, features_BMD: Tensor, present_BM: Tensor) -> Tensor:
        """Features and presence to one vector [B, D]."""
        present_BM1 = present_BM.to(features_BMD.dtype).unsqueeze(2)
        linear_BMRD = torch.einsum(
            "bmi,mrid->bmrd", features_BMD * present_BM1, self.factor_MRDD[:, :, 1:]
        )
        product_BRD = (linear_BMRD + self.factor_MRDD[:, :, 0]).prod(dim=1)
        return torch.einsum("brd,r->bd", product_BRD, self.weight_R) + self.bias_D
