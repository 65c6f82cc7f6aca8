"""Heads: from a feature vector to the logits of a task.

B batch, D width, K levels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class OrdinalHead(nn.Linear):
    """The log-probabilities of K ordered levels, from K - 1 logits.

    It is the continuation-ratio model: logit k is that of P(level > k), given level >= k. So the
    probabilities of the levels sum to 1, and each logit compares a level with all higher ones.
    """

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__(width, num_levels - 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, K] in fp32 for features [B, D]."""
        return level_log_probabilities(super().forward(input))


def level_log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-probabilities [B, K] of the levels for continuation-ratio logits [B, K - 1].

    Level k is reached if all lower levels are passed, and the last one cannot be passed.
    """
    logits = logits.float()
    passed, stopped = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    J = logits.shape[1]
    # A product with a mask, because a cumulative sum has no deterministic kernel on a GPU.
    lower_KJ = torch.ones(J + 1, J, device=logits.device).tril(-1)
    reached_BK = (passed.unsqueeze(1) * lower_KJ).sum(2)
    return reached_BK + functional.pad(stopped, (0, 1))


def make_head(width: int, num_outputs: int, is_ordinal: bool = False) -> nn.Module:
    """Return the head of a task with this many classes, levels or numbers."""
    if is_ordinal:
        return OrdinalHead(width, num_outputs)
    return nn.Linear(width, num_outputs)
