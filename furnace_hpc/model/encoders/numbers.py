"""The encoder of numbers: a token for each column, and one for all of them.

B batch, N columns, T tokens (N + 1), D width.
"""

import torch
from torch import Tensor, nn


class NumberEncoder(nn.Module):
    """Tokens of a row of standardised numbers, some of which may be missing.

    The token of a column is its number times a learnt vector, plus a learnt vector, as in the
    FT-Transformer (Gorishniy et al. 2021). Missing columns are masked. The first token comes from a
    small network over the row. It sees all numbers and which of them are missing, so the fusion
    without attention can combine columns, too.
    """

    def __init__(self, columns: int, width: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        # The scale at which FT-Transformer begins. The layer norm after the encoder keeps the sum.
        self.scale_ND = nn.Parameter(torch.randn(columns, width) * width**-0.5)
        self.bias_ND = nn.Parameter(torch.randn(columns, width) * width**-0.5)
        self.row = nn.Sequential(
            nn.Linear(2 * columns, feedforward),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward, width),
        )

    def forward(self, numbers_BN2: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn numbers into (tokens [B, T, D], mask [B, T]).

        Args:
            numbers_BN2: each column's standardised number, and 1. Both are 0 if it is missing.
            length_B: not used, because all rows have the same columns.
        """
        numbers_BN2 = numbers_BN2.to(self.scale_ND.dtype)
        number_BN, known_BN = numbers_BN2.unbind(-1)
        columns_BND = number_BN.unsqueeze(-1) * self.scale_ND + self.bias_ND
        row_BD = self.row(torch.cat([number_BN, known_BN], dim=-1))
        tokens_BTD = torch.cat([row_BD.unsqueeze(1), columns_BND], dim=1)
        always_B1 = torch.ones_like(known_BN[:, :1], dtype=torch.bool)
        return tokens_BTD, torch.cat([always_B1, known_BN > 0], dim=1)
