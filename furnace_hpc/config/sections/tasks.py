"""The section `tasks`."""

from typing import Literal

from pydantic import Field, model_validator

from furnace_hpc.config.base import ADDED_LATER, Config, Name


class TaskConfig(Config):
    """One thing to predict: a head, a loss and the label column `label.<name>`."""

    name: Name = Field(
        description="the label column is `label.<name>`; metrics are `<split>/<name>/<metric>`"
    )
    kind: Literal["single_label", "multi_label", "ordinal", "regression"] = Field(
        default="single_label",
        description="single_label: one class per sample, cross-entropy; multi_label: any number of "
        "classes, binary cross-entropy; ordinal: one of several ordered levels, continuation-ratio "
        "likelihood; regression: one or several numbers, squared error of standardised targets",
    )
    weight: float = Field(default=1.0, gt=0, description="factor of this task's loss in the sum")
    class_weights: Literal["balanced"] | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="balanced: a sample's training loss is multiplied by train samples / (classes "
        "x train samples of its class). For single_label and ordinal [all classes count 1]",
    )
    focal_gamma: float = Field(
        default=0.0,
        ge=0,
        json_schema_extra=ADDED_LATER,
        description="focal loss in training: each cross-entropy is multiplied by (1 - probability "
        "of the truth) to this power. For single_label and multi_label",
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> "TaskConfig":
        if self.class_weights and self.kind not in ("single_label", "ordinal"):
            raise ValueError(
                f"class_weights are for single_label and ordinal, and task {self.name!r} is "
                f"{self.kind}. Remove them"
            )
        if self.focal_gamma and self.kind not in ("single_label", "multi_label"):
            raise ValueError(
                f"focal_gamma is for single_label and multi_label, and task {self.name!r} is "
                f"{self.kind}. Remove it"
            )
        return self
