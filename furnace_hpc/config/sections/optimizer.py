"""The sections `optimizer` and `schedule`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from furnace_hpc.config.base import ADDED_LATER, Beta, Config, no_duplicates

OptimizerName = Literal["adamw", "adam", "nadam", "radam", "adamax", "rmsprop", "sgd", "adafactor"]
WHOLE_MATRICES = frozenset({"adafactor"})
"""Optimizers that need whole matrices. ZeRO stages 1 to 3 give them parts of a flat vector."""


class OptimizerConfig(Config):
    """An optimizer of torch.optim."""

    name: OptimizerName = Field(
        default="adamw",
        json_schema_extra=ADDED_LATER,
        description="class of torch.optim. adafactor needs ZeRO stage 0",
    )
    lr: float = Field(default=3e-3, gt=0, description="peak learning rate")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.999),
        description="decay of the two moments. rmsprop takes the second, adafactor and sgd none",
    )
    eps: float = Field(
        default=1e-8, gt=0, description="added to the denominator. adafactor and sgd take none"
    )
    momentum: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        json_schema_extra=ADDED_LATER,
        description="of sgd [0.9] and rmsprop [0]",
    )
    nesterov: bool = Field(
        default=False, json_schema_extra=ADDED_LATER, description="Nesterov momentum of sgd"
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        description="decoupled weight decay. adam, adamax, rmsprop and sgd add it to the gradient",
    )
    no_decay: Annotated[tuple[Literal["norms", "biases"], ...], AfterValidator(no_duplicates)] = (
        Field(
            default=(),
            json_schema_extra=ADDED_LATER,
            description="parameters without weight decay: norms (of normalization layers), biases",
        )
    )
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="gradient clipping by global norm; 0: off"
    )

    @model_validator(mode="after")
    def _combinations(self) -> "OptimizerConfig":
        if self.momentum is not None and self.name not in ("sgd", "rmsprop"):
            raise ValueError(
                f"momentum is for the optimizers sgd and rmsprop, and name is {self.name}. Remove "
                "momentum, or change name"
            )
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError(
                f"nesterov needs optimizer sgd with a momentum, got {self.name} with momentum "
                f"{self.momentum}. Remove nesterov, or change them"
            )
        return self


class ScheduleConfig(Config):
    """Learning rate over the run: linear warm-up, then decay."""

    decay: Literal["cosine", "constant", "linear", "polynomial", "wsd"] = Field(
        default="cosine",
        description="from the peak to final_fraction at the last step: cosine, linear, or "
        "polynomial. wsd: first constant, then linear. constant: no decay",
    )
    warmup_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of the steps that warm up from 0"
    )
    final_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        json_schema_extra=ADDED_LATER,
        description="rate after the last step, as a share of optimizer.lr [0]",
    )
    power: float | None = Field(
        default=None,
        gt=0,
        json_schema_extra=ADDED_LATER,
        description="polynomial: power of the share of steps that are left [2]",
    )
    stable_fraction: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        json_schema_extra=ADDED_LATER,
        description="wsd: share of the steps at the peak, between warm-up and decay [0.8 - "
        "warmup_fraction, at least 0]",
    )

    @model_validator(mode="after")
    def _combinations(self) -> "ScheduleConfig":
        for key, of in (("power", "polynomial"), ("stable_fraction", "wsd")):
            value = getattr(self, key)
            if value is not None and self.decay != of:
                raise ValueError(
                    f"{key} is {value}, but it is for decay {of}, and decay is {self.decay}. "
                    f"Remove {key}, or change decay"
                )
        if self.final_fraction is not None and self.decay == "constant":
            raise ValueError(
                f"final_fraction is {self.final_fraction}, but decay is constant. Remove one of "
                "them"
            )
        if self.warmup_fraction + self.stable > 1:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} and stable_fraction {self.stable} are "
                "more than 1 together. Lower one of them"
            )
        return self

    @property
    def stable(self) -> float:
        """Share of the steps at the peak, between warm-up and decay."""
        if self.decay != "wsd":
            return 0.0
        if self.stable_fraction is None:
            return max(0.0, 0.8 - self.warmup_fraction)
        return self.stable_fraction
