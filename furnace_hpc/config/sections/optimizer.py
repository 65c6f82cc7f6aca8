"""The sections `optimizer` and `schedule`."""

from typing import Literal

from pydantic import Field

from furnace_hpc.config.base import Beta, Config


class OptimizerConfig(Config):
    """torch.optim.AdamW."""

    lr: float = Field(default=3e-3, gt=0, description="peak learning rate")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="decay of the two moments")
    eps: float = Field(default=1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="gradient clipping by global norm; 0: off"
    )


class ScheduleConfig(Config):
    """Learning rate over the run: linear warm-up, then decay."""

    decay: Literal["cosine", "constant"] = Field(
        default="cosine", description="cosine to 0 at the last step, or constant"
    )
    warmup_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of the steps that warm up from 0"
    )
