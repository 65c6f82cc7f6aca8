"""Features of frozen encoders: what an encoder computes before its trained projection.

How a kernel rounds may depend on the other samples of a batch and on their padding. So the features
of a sample are computed from this sample alone. Then they are the same bits in every batch, whether
they are stored once or computed in each step.

B batch, T tokens, H width of the encoder, D width of the fusion.
"""

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.data.features.reader import mask_key
from furnace_hpc.model.fine_tuning import network_of


def encoded(
    encoder: nn.Module,
    name: str,
    inputs: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor],
    present_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tokens [B, T, D] and mask [B, T] of a modality, from its input or from its features.

    Zeros replace what belongs to absent samples.
    """
    values = inputs[name]
    is_present = present_B.view(-1, *[1] * (values.dim() - 1))
    values = torch.where(is_present, values, torch.zeros_like(values))
    if (mask_BT := lengths.get(mask_key(name))) is not None:
        projection = projection_of(encoder)
        return (projection(values) if projection else values), mask_BT
    given = [values, lengths.get(name)]
    if name == "text" and TEXT_SECOND in lengths:
        given.append(lengths[TEXT_SECOND])
    tokens_BTD, mask_BT = encoder(*given)
    return tokens_BTD, mask_BT


def projection_of(encoder: nn.Module) -> nn.Module | None:
    """The trained layer behind the frozen part of an encoder. None if all of it is frozen."""
    if network_of(encoder) is encoder:
        return None
    return cast(nn.Module | None, getattr(encoder, "project", None))


class FrozenEncoder:
    """A copy of the frozen part of an encoder, in the precision of the training."""

    def __init__(
        self, modality: str, encoder: nn.Module, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.modality = modality
        self.module = copy.deepcopy(encoder)
        if projection_of(self.module):
            self.module.project = nn.Identity()
        if trained := [name for name, p in self.module.named_parameters() if p.requires_grad]:
            raise ConfigError(
                f"model.{modality}.cache_features needs an encoder that is not trained, and "
                f"{trained[0]} of it is trained. Remove cache_features"
            )
        self.module.to(device=device, dtype=dtype).eval()

    @torch.no_grad()
    def features(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Features [T, H] and mask [T] of the only sample of a batch."""
        [_] = inputs[self.modality]  # one sample
        given = (self.module, self.modality, inputs, lengths)
        present_B = torch.ones(1, dtype=torch.bool, device=inputs[self.modality].device)
        tokens_BTH, mask_BT = encoded(*given, present_B)
        return tokens_BTH[0], mask_BT[0]
