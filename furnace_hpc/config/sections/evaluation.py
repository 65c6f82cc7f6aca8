"""The sections `evaluation` and `early_stopping`."""

from typing import Literal

from pydantic import Field

from furnace_hpc.config.base import NOT_IDENTITY, Config


class EvaluationConfig(Config):
    """When to evaluate on the validation split, and which step to evaluate on the test split."""

    every: int = Field(
        default=100,
        ge=1,
        description="optimizer steps between evaluations; the last step is evaluated too",
    )
    select: Literal["best", "last"] = Field(
        default="best",
        description="step for the test split: the evaluated step with the best `metric`, or the "
        "last step",
    )
    metric: str | None = Field(
        default=None,
        description="val/<task>/<metric> [of the first task, by its kind: accuracy, map, qwk or "
        "mae]",
    )
    frames: Literal["middle", "mean"] = Field(
        default="middle",
        description="frames of a clip. middle: its middle frame; mean: all frames, and the mean of "
        "their probabilities is scored",
    )
    batch_size: int = Field(
        default=256,
        ge=1,
        json_schema_extra=NOT_IDENTITY,
        description="samples per forward pass and process",
    )


class EarlyStoppingConfig(Config):
    """When to end a run before its last step."""

    patience: int = Field(
        ge=1,
        description="evaluations in a row without a new best value of evaluation.metric, after "
        "which training ends",
    )
