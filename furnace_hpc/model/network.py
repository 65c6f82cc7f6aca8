"""The whole network: encoders, fusion, one head per task. A plain module: any unit test can call it.

B batch, M modalities, T tokens, D width, C classes, P width of a projection.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.config.model_config import LossConfig, ModelConfig
from furnace_hpc.model.attention import (
    BottleneckFusion,
    Checkpoint,
    CrossAttentionFusion,
    masked_mean,
)
from furnace_hpc.model.encoders import InputShapes, make_encoder
from furnace_hpc.model.fusion import ConcatFusion, GatedFusion, LowRankFusion


class FusionModel(nn.Module):
    """Encoders give tokens, fusion lets them meet; the read-out adds the mean of the pooled present modalities.

    Every encoder runs for every batch, so that all ranks call the same collectives under ZeRO stage 3: an absent
    input is replaced by zeros before its encoder, and what comes out is multiplied by zero.
    """

    def __init__(
        self,
        config: ModelConfig,
        shapes: InputShapes,
        num_classes: dict[str, int],
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__()
        loss = loss or LossConfig()
        self.modalities, self.modality_dropout = config.modalities, config.modality_dropout
        self.encoders = nn.ModuleDict(
            {name: make_encoder(name, config, shapes) for name in config.modalities}
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.width) for name in config.modalities})
        self.fusion = _fusion(config)
        self.heads = nn.ModuleDict(
            {task: nn.Linear(config.width, count) for task, count in num_classes.items()}
        )
        self.unimodal = (
            nn.ModuleDict() if not loss.unimodal else _unimodal_heads(config, num_classes)
        )
        self.projections = ProjectionHeads(config, loss) if loss.info_nce else None
        self.expanders = _expanders(config, loss) if loss.vicreg else None
        self.checkpoint: Checkpoint | None = None

    def checkpoint_activations(self, checkpoint: Checkpoint) -> None:
        """Compute attention blocks again in backward instead of keeping their activations."""
        self.checkpoint = checkpoint
        for module in self.modules():
            # a model of transformers
            if enable := getattr(module, "activation_checkpointing_enable", None):
                enable({"use_reentrant": False})

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor],
        present_BM: Tensor,
        subsets: Sequence[Sequence[int]] = (),
    ) -> dict[str, Any]:
        """What heads and losses need; losses take it from here, so that no encoder runs twice.

        Args:
            inputs: modality -> values; those of absent samples may be anything.
            lengths: modality -> valid tokens or frames [B].
            present_BM: whether each sample has each modality; one at least.
            subsets: sets of modalities (their numbers); each gives further logits, as if the others were absent.

        Returns:
            "logits": task -> [B, C]; "features": the modalities' pooled tokens [B, M, D], zero where absent;
            "present": what the network has really seen [B, M]; "subsets": a task -> [B, C] per subset, where a
            sample that has none of it gets NaN; "unimodal": task -> [B, M, C]; "projections": [B, M, P],
            normalised, and "scale"; "expanded": [B, M, P], fp32; the last four where the loss asks for them.

        Raises:
            ValueError: a sample has no modality. (Not on a GPU, where looking would wait for it; set_up has looked. Nor
                in an exported program, which has no way to say it.)
        """
        looks = present_BM.device.type == "cpu" and not torch.compiler.is_exporting()
        if looks and not bool(present_BM.any(1).all()):
            row = int((~present_BM.any(1)).nonzero()[0])
            raise ValueError(
                f"sample {row} of the batch has none of the modalities {', '.join(self.modalities)}"
            )
        if self.training and self.modality_dropout:
            present_BM = drop_modalities(present_BM, self.modality_dropout)
        tokens, masks = self._encode(inputs, lengths, present_BM)
        fused_BD, features_BMD = self._fuse(tokens, masks, present_BM)
        output: dict[str, Any] = {
            "logits": self._logits(fused_BD),
            "features": features_BMD,
            "present": present_BM,
            "subsets": [self._logits_of(subset, tokens, masks, present_BM) for subset in subsets],
        }
        if len(self.unimodal):
            output["unimodal"] = {
                task: torch.stack(
                    [head(part) for head, part in zip(heads, features_BMD.unbind(1), strict=True)],
                    dim=1,
                )
                for task, heads in cast(dict[str, nn.ModuleList], self.unimodal).items()
            }
        if self.projections:
            output["projections"], output["scale"] = self.projections(features_BMD)
        if self.expanders:
            parts = [part(features_BMD[:, m]) for m, part in enumerate(self.expanders)]
            output["expanded"] = torch.stack(parts, dim=1).float()
        return output

    def _encode(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens [B, T, D] and masks [B, T] of each modality; zeros and false where absent."""
        tokens, masks = [], []
        for m, name in enumerate(self.modalities):
            present_B = present_BM[:, m]
            values = inputs[name]
            values = torch.where(
                present_B.view(-1, *[1] * (values.dim() - 1)), values, torch.zeros_like(values)
            )
            tokens_BTD, mask_BT = self.encoders[name](values, lengths.get(name))
            tokens.append(self.norms[name](tokens_BTD) * present_B.view(-1, 1, 1))
            masks.append(mask_BT & present_B.unsqueeze(1))
        return tokens, masks

    def _fuse(
        self, tokens: list[Tensor], masks: list[Tensor], present_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The fused vector [B, D], and the modalities' features [B, M, D]."""
        features_BMD = torch.stack(
            [masked_mean(part, mask) for part, mask in zip(tokens, masks, strict=True)], dim=1
        )
        match self.fusion:
            case CrossAttentionFusion():
                fused_BD = self.fusion(tokens, masks, self.checkpoint)
            case BottleneckFusion():
                fused_BD = self.fusion(tokens, masks, present_BM, self.checkpoint)
            case _:
                fused_BD = self.fusion(features_BMD, present_BM)
        return fused_BD + masked_mean(features_BMD, present_BM), features_BMD

    def _logits(self, fused_BD: Tensor) -> dict[str, Tensor]:
        return {task: head(fused_BD) for task, head in self.heads.items()}

    def _logits_of(
        self, subset: Sequence[int], tokens: list[Tensor], masks: list[Tensor], present_BM: Tensor
    ) -> dict[str, Tensor]:
        """Logits where only a subset is there: what encoders give of an absent input is zeros, so they need not run."""
        kept_M = torch.zeros_like(present_BM[0])
        kept_M[list(subset)] = True
        present_BM = present_BM & kept_M
        tokens = [part * present_BM[:, m].view(-1, 1, 1) for m, part in enumerate(tokens)]
        masks = [mask & present_BM[:, m : m + 1] for m, mask in enumerate(masks)]
        nothing_B1 = ~present_BM.any(1, keepdim=True)
        logits = self._logits(self._fuse(tokens, masks, present_BM)[0])
        return {task: part.masked_fill(nothing_B1, math.nan) for task, part in logits.items()}


class ProjectionHeads(nn.Module):
    """Projections for InfoNCE, apart from the features that classify, and its learnt temperature (Radford 2021)."""

    def __init__(self, config: ModelConfig, loss: LossConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(config.width, loss.projection_width) for _ in config.modalities
        )
        self.log_scale = nn.Parameter(torch.tensor([-math.log(loss.temperature)]))

    def forward(self, features_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised projections [B, M, P], fp32, and the scale of their cosines (at most 100)."""
        parts = [layer(features_BMD[:, m]) for m, layer in enumerate(self.layers)]
        scale = self.log_scale.float().clamp(max=math.log(100)).exp()
        return functional.normalize(torch.stack(parts, dim=1).float(), dim=-1), scale


def drop_modalities(present_BM: Tensor, probability: float) -> Tensor:
    """Hide each present modality with this probability; a sample that would lose all keeps one of them at random."""
    draw_BM = torch.rand(present_BM.shape, device=present_BM.device).masked_fill(~present_BM, -1.0)
    kept_BM = draw_BM >= probability
    best_BM = functional.one_hot(draw_BM.argmax(1), present_BM.shape[1]).bool()
    return kept_BM | (best_BM & ~kept_BM.any(1, keepdim=True))


def _fusion(config: ModelConfig) -> nn.Module:
    M, width, feedforward, dropout = (
        len(config.modalities),
        config.width,
        config.feedforward,
        config.dropout,
    )
    layers, heads = config.fusion_layers, config.num_heads
    match config.fusion:
        case "concat":
            return ConcatFusion(M, width, feedforward, dropout)
        case "gated":
            return GatedFusion(M, width)
        case "low_rank":
            return LowRankFusion(M, width, config.rank)
        case "cross_attention":
            return CrossAttentionFusion(M, width, layers, heads, feedforward, dropout)
        case "bottleneck":
            return BottleneckFusion(
                M, width, layers, heads, feedforward, dropout, config.bottleneck_tokens
            )


def _unimodal_heads(config: ModelConfig, num_classes: dict[str, int]) -> nn.ModuleDict:
    heads = {
        task: nn.ModuleList(nn.Linear(config.width, count) for _ in config.modalities)
        for task, count in num_classes.items()
    }
    return nn.ModuleDict(heads)


def _expanders(config: ModelConfig, loss: LossConfig) -> nn.ModuleList:
    """For VICReg, one a modality, apart from the features that classify.

    A layer norm stands where the paper has a batch norm, whose statistics would depend on ranks and absent modalities.
    """
    width = loss.projection_width
    return nn.ModuleList(
        nn.Sequential(
            nn.Linear(config.width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )
        for _ in config.modalities
    )
