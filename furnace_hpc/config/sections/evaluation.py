"""The sections `evaluation` and `early_stopping`."""

from typing import Any, Literal

from pydantic import Field, field_validator

from furnace_hpc.config.base import ADDED_LATER, NOT_IDENTITY, Config
from furnace_hpc.config.metrics import METRICS, Direction
from furnace_hpc.config.own_code.references import Arguments, ImportPath, short_names


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
    direction: Direction | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="max or min: better values of `metric`, if it is your own [the metric's]",
    )
    frames: Literal["middle", "mean"] = Field(
        default="middle",
        description="frames of a clip. middle: its middle frame; mean: all frames, and the mean of "
        "their probabilities is scored",
    )
    extra: dict[ImportPath, Arguments] = Field(
        default={},
        max_length=20,
        json_schema_extra=ADDED_LATER,
        description="your own metrics: package.module:function of the grid's `code` -> parameters, "
        "or {}. The metric is <split>/<task>/<function>",
    )
    batch_size: int = Field(
        default=256,
        ge=1,
        json_schema_extra=NOT_IDENTITY,
        description="samples per forward pass and process",
    )

    @field_validator("extra")
    @classmethod
    def _new_names(cls, extra: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        known = {name for names in METRICS.values() for name in names} | {"samples"}
        for name in short_names(extra):
            if name in known:
                raise ValueError(f"{name} is the name of a built-in metric. Rename the function")
        return extra

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """Names of the metrics of `extra`."""
        return tuple(short_names(self.extra))


class EarlyStoppingConfig(Config):
    """When to end a run before its last step."""

    patience: int = Field(
        ge=1,
        description="evaluations in a row without a new best value of evaluation.metric, after "
        "which training ends",
    )
