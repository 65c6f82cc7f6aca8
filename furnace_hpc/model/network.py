"""The whole network: encoders, fusion and one head per task. It is a plain torch module.

B batch, M modalities, T tokens, D width, C classes, P width of a projection.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.attention import (
    BottleneckFusion,
    Checkpoint,
    CrossAttentionFusion,
    masked_mean,
)
from furnace_hpc.model.encoders.choice import make_encoder
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.fine_tuning import fine_tune
from furnace_hpc.model.frozen_features import encoded
from furnace_hpc.model.fusion import ConcatFusion, GatedFusion, LowRankFusion
from furnace_hpc.model.heads import make_head
from furnace_hpc.model.own_code.modules import own_fusion


class Computed(NamedTuple):
    """What a network computes from its inputs."""

    logits: dict[str, Tensor]
    """Task -> [B, C]."""
    features_BMD: Tensor
    subsets: list[dict[str, Tensor]]
    """Task -> [B, C] per subset."""
    present_BM: Tensor
    """The modalities that were used."""


class Network(nn.Module, ABC):
    """A network of any kind, with modality dropout and the heads that losses need."""

    unimodal: nn.ModuleDict
    projections: "ProjectionHeads | None"
    expanders: nn.ModuleList | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.modalities, self.modality_dropout = config.modalities, config.modality_dropout
        self.checkpoint: Checkpoint | None = None

    def _add_loss_heads(
        self,
        config: ModelConfig,
        num_classes: dict[str, int],
        loss: LossConfig,
        ordinal: frozenset[str],
    ) -> None:
        """Make the heads that losses need. Their initial values are drawn after all others."""
        self.unimodal = nn.ModuleDict()
        if loss.unimodal:
            self.unimodal = _unimodal_heads(config, num_classes, ordinal)
        self.projections = ProjectionHeads(config, loss) if loss.info_nce else None
        self.expanders = _expanders(config, loss) if loss.vicreg else None
        # Last, so that the other initial weights do not depend on it.
        self._frozen = fine_tune(self.furnace_encoders(), config)

    def train(self, mode: bool = True) -> "Network":
        """Set the mode. Frozen layers stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @abstractmethod
    def furnace_encoders(self) -> Mapping[str, nn.Module]:
        """Modality -> its encoder, if Furnace has made one."""

    @abstractmethod
    def compute(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor],
        present_BM: Tensor,
        subsets: Sequence[Sequence[int]],
        complete: frozenset[str],
        mix: tuple[Tensor, Tensor] | None,
    ) -> Computed:
        """Compute what `forward` returns of the network itself. The arguments are the same."""

    def checkpoint_activations(self, checkpoint: Checkpoint) -> None:
        """Recompute attention blocks in backward instead of keeping their activations."""
        self.checkpoint = checkpoint
        for module in self.modules():
            # Only models of transformers have it. Some have no layers that can be recomputed.
            if getattr(module, "supports_gradient_checkpointing", False):
                cast(Any, module).activation_checkpointing_enable({"use_reentrant": False})

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor],
        present_BM: Tensor,
        subsets: Sequence[Sequence[int]] = (),
        complete: frozenset[str] = frozenset(),
        mix: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Compute logits, and all that the losses need. So no encoder runs twice.

        Args:
            inputs: modality -> values. Those of absent samples may be anything. A modality with a
                mask in `lengths` (`mask_key`) has features [B, T, H] of its frozen encoder.
            lengths: modality -> valid tokens or frames [B]. `text_second`: start of second texts.
            present_BM: whether each sample has each modality. Each sample has at least one.
            subsets: sets of modality indices. For each, also compute logits without the others.
            complete: modalities that all samples have, with valid values at all positions. Their
                attention needs no mask. Only the host can know them without waiting for a GPU.
            mix: partner of each sample in the batch and the sample's own weight [B], for `mixed`.

        Returns:
            "logits": task -> [B, C]. Log-probabilities for ordinal tasks, standardised numbers for
                regression.
            "features": pooled tokens of the modalities [B, M, D], zero if absent.
            "present": the modalities that the network used [B, M].
            "subsets": task -> [B, C] per subset. NaN if a sample has none of its modalities.
            "unimodal": task -> [B, M, C], if the loss has unimodal heads.
            "projections", "scale": normalised [B, M, P] and a scalar, if the loss has InfoNCE.
            "expanded": [B, M, P] in fp32, if the loss has VICReg.

        Raises:
            ValueError: a sample has no modality. Only checked on the CPU: on a GPU the check would
                wait for the device (set_up has checked), and an exported program cannot raise.
        """
        self._check_present(present_BM)
        if self.training and self.modality_dropout:
            present_BM = drop_modalities(present_BM, self.modality_dropout)
        lengths = {name: length for name, length in lengths.items() if name not in complete}
        if self.training and self.modality_dropout:
            complete = frozenset()
        computed = self.compute(inputs, lengths, present_BM, subsets, complete, mix)
        logits, features_BMD, of_subsets, present_BM = computed
        output: dict[str, Any] = {
            "logits": logits,
            "features": features_BMD,
            "present": present_BM,
            "subsets": of_subsets,
        }
        if len(self.unimodal):
            output["unimodal"] = self._unimodal_logits(features_BMD)
        if self.projections:
            output["projections"], output["scale"] = self.projections(features_BMD)
        if self.expanders:
            parts = [part(features_BMD[:, m]) for m, part in enumerate(self.expanders)]
            output["expanded"] = torch.stack(parts, dim=1).float()
        return output

    def _check_present(self, present_BM: Tensor) -> None:
        if present_BM.device.type != "cpu" or torch.compiler.is_exporting():
            return
        if not bool(present_BM.any(1).all()):
            row = int((~present_BM.any(1)).nonzero()[0])
            names = ", ".join(self.modalities)
            raise ValueError(f"sample {row} of the batch has none of the modalities {names}")

    def _unimodal_logits(self, features_BMD: Tensor) -> dict[str, Tensor]:
        """Task -> logits [B, M, C] of the heads that see one modality."""
        logits = {}
        for task, heads in cast(dict[str, nn.ModuleList], self.unimodal).items():
            features = features_BMD.unbind(1)
            parts = [head(part) for head, part in zip(heads, features, strict=True)]
            logits[task] = torch.stack(parts, dim=1)
        return logits


class FusionModel(Network):
    """Encode each modality into tokens, fuse them, and apply the heads of the tasks.

    The input of the heads is the fused vector plus the mean of the present modalities' features.
    Every encoder runs for every batch, because under ZeRO stage 3 all ranks must call the same
    collectives. Zeros replace an absent input, and its tokens are multiplied by zero.
    """

    def __init__(
        self,
        config: ModelConfig,
        shapes: InputShapes,
        num_classes: dict[str, int],
        loss: LossConfig | None = None,
        ordinal: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(config)
        self.encoders = nn.ModuleDict(
            {name: make_encoder(name, config, shapes) for name in config.modalities}
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.width) for name in config.modalities})
        self.fusion = _fusion(config)
        self.heads = nn.ModuleDict(
            {
                task: make_head(config.width, count, task in ordinal)
                for task, count in num_classes.items()
            }
        )
        self._add_loss_heads(config, num_classes, loss or LossConfig(), ordinal)

    def furnace_encoders(self) -> Mapping[str, nn.Module]:
        """Modality -> its encoder."""
        return cast(Mapping[str, nn.Module], self.encoders)

    def compute(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor],
        present_BM: Tensor,
        subsets: Sequence[Sequence[int]],
        complete: frozenset[str],
        mix: tuple[Tensor, Tensor] | None,
    ) -> Computed:
        """Encode once, and fuse the tokens of all modalities and of each subset."""
        tokens, masks = self._encode(inputs, lengths, present_BM)
        if mix:
            tokens, masks, present_BM = mixed(tokens, masks, present_BM, *mix)
        fused_BD, features_BMD = self._fuse(tokens, masks, present_BM, complete)
        of_subsets = [
            self._logits_of(subset, tokens, masks, present_BM, complete) for subset in subsets
        ]
        return Computed(self._logits(fused_BD), features_BMD, of_subsets, present_BM)

    def _encode(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens [B, T, D] and masks [B, T] of each modality. Zero and false if absent."""
        tokens, masks = [], []
        for m, name in enumerate(self.modalities):
            present_B = present_BM[:, m]
            tokens_BTD, mask_BT = encoded(self.encoders[name], name, inputs, lengths, present_B)
            tokens.append(self.norms[name](tokens_BTD) * present_B.view(-1, 1, 1))
            masks.append(mask_BT & present_B.unsqueeze(1))
        return tokens, masks

    def _fuse(
        self,
        tokens: list[Tensor],
        masks: list[Tensor],
        present_BM: Tensor,
        complete: frozenset[str],
    ) -> tuple[Tensor, Tensor]:
        """The fused vector [B, D], and the modalities' features [B, M, D]."""
        pooled = [masked_mean(part, mask) for part, mask in zip(tokens, masks, strict=True)]
        features_BMD = torch.stack(pooled, dim=1)
        is_complete = [name in complete for name in self.modalities]
        match self.fusion:
            case CrossAttentionFusion():
                fused_BD = self.fusion(tokens, masks, self.checkpoint, is_complete)
            case BottleneckFusion():
                fused_BD = self.fusion(tokens, masks, present_BM, self.checkpoint, is_complete)
            case ConcatFusion() | GatedFusion() | LowRankFusion():
                fused_BD = self.fusion(features_BMD, present_BM)
            case _:
                fused_BD = self.fusion(features_BMD, present_BM, tokens, masks)
        return fused_BD + masked_mean(features_BMD, present_BM), features_BMD

    def _logits(self, fused_BD: Tensor) -> dict[str, Tensor]:
        return {task: head(fused_BD) for task, head in self.heads.items()}

    def _logits_of(
        self,
        subset: Sequence[int],
        tokens: list[Tensor],
        masks: list[Tensor],
        present_BM: Tensor,
        complete: frozenset[str],
    ) -> dict[str, Tensor]:
        """Logits from a subset of the modalities. The tokens of the others are set to zero."""
        present_BM = only(subset, present_BM)
        complete &= {self.modalities[m] for m in subset}
        tokens = [part * present_BM[:, m].view(-1, 1, 1) for m, part in enumerate(tokens)]
        masks = [mask & present_BM[:, m : m + 1] for m, mask in enumerate(masks)]
        logits = self._logits(self._fuse(tokens, masks, present_BM, complete)[0])
        return without_empty(logits, present_BM)


class ProjectionHeads(nn.Module):
    """Projections for InfoNCE and its learnt temperature (Radford et al. 2021)."""

    def __init__(self, config: ModelConfig, loss: LossConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(config.width, loss.projection_width) for _ in config.modalities
        )
        self.log_scale = nn.Parameter(torch.tensor([-math.log(loss.temperature)]))

    def forward(self, features_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised projections [B, M, P] in fp32, and their scale, at most 100."""
        parts = [layer(features_BMD[:, m]) for m, layer in enumerate(self.layers)]
        scale = self.log_scale.float().clamp(max=math.log(100)).exp()
        return functional.normalize(torch.stack(parts, dim=1).float(), dim=-1), scale


def mixed(
    tokens: list[Tensor],
    masks: list[Tensor],
    present_BM: Tensor,
    partner_B: Tensor,
    weight_B: Tensor,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Mix the encoders' outputs of samples and their partners (Verma et al. 2019).

    All modalities have the same weight. Tokens at the same position are mixed. Where only one of
    the two has a token or a modality, the other one counts as zero (Guo et al. 2019).
    """
    found = []
    for part_BTD, mask_BT in zip(tokens, masks, strict=True):
        valid_BTD = part_BTD * mask_BT.unsqueeze(2)
        own_B11 = weight_B.to(part_BTD.dtype).view(-1, 1, 1)
        found.append(own_B11 * valid_BTD + (1 - own_B11) * valid_BTD[partner_B])
    joined = [mask_BT | mask_BT[partner_B] for mask_BT in masks]
    return found, joined, present_BM | present_BM[partner_B]


def only(subset: Sequence[int], present_BM: Tensor) -> Tensor:
    """Presence of the modalities of a subset. The others count as absent."""
    kept_M = torch.zeros_like(present_BM[0])
    for m in subset:  # a list as an index would wait for the GPU
        kept_M[m] = True
    return present_BM & kept_M


def without_empty(logits: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
    """Task -> logits [B, C], NaN for samples without a modality."""
    nothing_B1 = ~present_BM.any(1, keepdim=True)
    return {task: part.masked_fill(nothing_B1, math.nan) for task, part in logits.items()}


def drop_modalities(present_BM: Tensor, probability: float) -> Tensor:
    """Hide each present modality with this probability, but always keep one at random."""
    draw_BM = torch.rand(present_BM.shape, device=present_BM.device).masked_fill(~present_BM, -1.0)
    kept_BM = draw_BM >= probability
    position_M = torch.arange(present_BM.shape[1], device=present_BM.device)
    best_BM = draw_BM.argmax(1, keepdim=True) == position_M
    return kept_BM | (best_BM & ~kept_BM.any(1, keepdim=True))


def _fusion(config: ModelConfig) -> nn.Module:
    M, width = len(config.modalities), config.width
    attention = (config.fusion_layers, config.num_heads, config.feedforward, config.dropout)
    match config.fusion:
        case "concat":
            return ConcatFusion(M, width, config.feedforward, config.dropout)
        case "gated":
            return GatedFusion(M, width)
        case "low_rank":
            return LowRankFusion(M, width, config.rank)
        case "cross_attention":
            return CrossAttentionFusion(M, width, *attention)
        case "bottleneck":
            return BottleneckFusion(M, width, *attention, config.bottleneck_tokens)
    return own_fusion(config)


def _unimodal_heads(
    config: ModelConfig, num_classes: dict[str, int], ordinal: frozenset[str]
) -> nn.ModuleDict:
    heads = nn.ModuleDict()
    for task, count in num_classes.items():
        heads[task] = nn.ModuleList(
            make_head(config.width, count, task in ordinal) for _ in config.modalities
        )
    return heads


def _expanders(config: ModelConfig, loss: LossConfig) -> nn.ModuleList:
    """One network per modality, which makes the features for VICReg.

    The paper has a batch norm instead of the layer norm. Its statistics would depend on ranks and
    absent modalities.
    """
    width = loss.projection_width
    return nn.ModuleList(
        nn.Sequential(
            nn.Linear(config.width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )
        for _ in config.modalities
    )
