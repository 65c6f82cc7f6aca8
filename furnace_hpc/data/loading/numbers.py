"""Numbers of samples as the network takes them. B batch, N columns."""

import torch
from torch import Tensor


def prepared_numbers(stored_BN: Tensor, mean_N: Tensor, std_N: Tensor) -> Tensor:
    """Return standardised numbers and whether they are known, [B, N, 2] in fp32.

    Args:
        stored_BN: numbers in their own units, in fp64. NaN is a missing number: it becomes 0, 0.
        mean_N: means of the train split in fp64.
        std_N: deviations of the train split in fp64.
    """
    known_BN = ~stored_BN.isnan()
    number_BN = (stored_BN.double() - mean_N) / std_N
    number_BN = torch.where(known_BN, number_BN, torch.zeros_like(number_BN))
    return torch.stack([number_BN.float(), known_BN.float()], dim=-1)
