"""The whole network: encoders, fusion, one head per task. A plain module: any unit test can call it.

B batch, M modalities, T tokens, D width, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from furnace_hpc.model.encoders import AudioEncoder, ImageEncoder, TextEncoder
from furnace_hpc.model.fusion import Checkpoint, CrossAttentionFusion
from furnace_hpc.spec.config import ModelConfig
from furnace_hpc.spec.manifest import Manifest


@dataclass(frozen=True)
class InputShapes:
    """What the encoders need to know of the data."""

    vocab_size: int
    pad_id: int
    image_channels: int
    audio_coefficients: int

    @classmethod
    def of(cls, manifest: Manifest) -> "InputShapes":
        """The shapes of a packed data set."""
        columns = manifest.columns
        return cls(
            vocab_size=manifest.vocab_size or 0,
            pad_id=manifest.pad_id,
            image_channels=columns["image"].shape[-3] if "image" in columns else 0,
            audio_coefficients=columns["audio"].shape[0] if "audio" in columns else 0,
        )


class FusionModel(nn.Module):
    """Encoders give tokens, attention lets them meet, and the read-out is CLS plus the pooled present modalities.

    Every encoder runs for every batch, so that all ranks call the same collectives under ZeRO stage 3: an absent
    input is replaced by zeros before its encoder, and what comes out is multiplied by zero.
    """

    def __init__(self, config: ModelConfig, shapes: InputShapes, num_classes: dict[str, int]) -> None:
        super().__init__()
        self.modalities = config.modalities
        self.encoders = nn.ModuleDict({name: _encoder(name, config, shapes) for name in config.modalities})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.width) for name in config.modalities})
        self.fusion = CrossAttentionFusion(
            len(config.modalities),
            config.width,
            config.fusion_layers,
            config.num_heads,
            config.feedforward,
            config.dropout,
        )
        self.heads = nn.ModuleDict({task: nn.Linear(config.width, count) for task, count in num_classes.items()})
        self.checkpoint: Checkpoint | None = None

    def checkpoint_activations(self, checkpoint: Checkpoint) -> None:
        """Compute the attention blocks again in backward instead of keeping their activations."""
        self.checkpoint = checkpoint
        for encoder in self.encoders.values():
            if isinstance(encoder, TextEncoder):
                encoder.bert.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor], present_BM: Tensor) -> dict[str, Any]:
        """Return {"logits": task -> [B, C], "features": [B, M, D]}.

        Features are the modalities' pooled tokens (zero where absent); losses take them from here, so that no
        encoder runs twice.
        """
        tokens, masks, features = [], [], []
        for m, name in enumerate(self.modalities):
            present_B = present_BM[:, m]
            values = inputs[name]
            values = torch.where(present_B.view(-1, *[1] * (values.dim() - 1)), values, torch.zeros_like(values))
            tokens_BTD, mask_BT = self.encoders[name](values, lengths.get(name))
            tokens_BTD = self.norms[name](tokens_BTD) * present_B.view(-1, 1, 1)
            mask_BT = mask_BT & present_B.unsqueeze(1)
            tokens.append(tokens_BTD)
            masks.append(mask_BT)
            features.append(masked_mean(tokens_BTD, mask_BT))
        features_BMD = torch.stack(features, dim=1)
        fused_BD = self.fusion(tokens, masks, self.checkpoint) + masked_mean(features_BMD, present_BM)
        return {
            "logits": {task: head(fused_BD) for task, head in self.heads.items()},
            "features": features_BMD,
        }


def masked_mean(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean [B, D] over the positions in the mask; zero where there is none."""
    weights_BT = mask_BT.to(x_BTD.dtype)
    return (x_BTD * weights_BT.unsqueeze(2)).sum(1) / weights_BT.sum(1, keepdim=True).clamp(min=1)


def _encoder(name: str, config: ModelConfig, shapes: InputShapes) -> nn.Module:
    match name:
        case "text":
            return TextEncoder(
                shapes.vocab_size,
                shapes.pad_id,
                config.width,
                config.text_layers,
                config.num_heads,
                config.feedforward,
                config.dropout,
            )
        case "image":
            return ImageEncoder(shapes.image_channels, config.width, config.image_tokens)
        case "audio":
            return AudioEncoder(shapes.audio_coefficients, config.width, config.audio_tokens)
    raise ValueError(f"no encoder for modality {name!r}")
