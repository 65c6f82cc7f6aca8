"""The schema of a ds_configs/ file.

DeepSpeed ignores unknown keys silently and reads "auto" as false, so a mistake would train
something else. Here every key is known and typed. It works with Furnace, or is refused with a
reason.
Batch sizes, optimizer, schedule and gradient clipping belong to the run's config, not to this file.
"""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from furnace_hpc.config.base import ADDED_LATER

OWNED_BY_THE_RUN = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size and micro_batch_size",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "optimizer",
    "scheduler": "schedule",
}
REFUSED_CHECKPOINTING = {
    "partition_activations": "it divides activations among tensor-parallel ranks, which Furnace "
    "does not have. It also empties the inputs of a block in place, such as the mask that all "
    "blocks share",
    "cpu_checkpointing": "it needs partition_activations, which is not supported",
    "contiguous_memory_optimization": "it needs partition_activations, which is not supported",
    "number_checkpoints": "it needs contiguous_memory_optimization, which is not supported",
}


class _Closed(BaseModel):
    """Base of all parts. `refused` maps keys of DeepSpeed to the reason in their error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    refused: ClassVar[dict[str, str]] = {}


class Bf16(_Closed):
    """bfloat16 training with fp32 master weights in the optimizer."""

    enabled: bool = Field(description="true: bf16 parameters; false: fp32")
    immediate_grad_update: bool | None = Field(
        default=None, description="stage 1 with fp32 accumulation: add each gradient at once"
    )
    check_grad_overflow: bool | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="false: the loop checks the norm of the gradient, at each record and before "
        "each save. Then the host does not wait for the GPU in a step, and stages 1 and 2 make a "
        "fraction of the kernel launches",
    )


class DataTypes(_Closed):
    """Types of values that are kept between micro-batches."""

    grad_accum_dtype: Literal["fp32", "bf16"] = Field(
        description="type in which gradients are accumulated"
    )


class Offload(_Closed):
    """Place of a ZeRO partition."""

    device: Literal["cpu"] = Field(description="cpu: in host memory")
    pin_memory: bool | None = Field(
        default=None, description="page-locked host memory, for faster copies [only on a GPU]"
    )


class ZeroOptimization(_Closed):
    """What ZeRO partitions: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""

    stage: Literal[0, 1, 2, 3] = Field(description="ZeRO stage")
    overlap_comm: bool | None = Field(default=None, description="reduce gradients during backward")
    contiguous_gradients: bool | None = Field(
        default=None, description="copy gradients to one buffer at once"
    )
    reduce_scatter: bool | None = Field(
        default=None, description="reduce-scatter instead of all-reduce"
    )
    reduce_bucket_size: int | None = Field(
        default=None, ge=1, description="elements reduced at a time"
    )
    allgather_bucket_size: int | None = Field(
        default=None, ge=1, description="elements gathered at a time"
    )
    stage3_param_persistence_threshold: int | None = Field(
        default=None,
        ge=0,
        description="stage 3: parameters with fewer elements are never partitioned",
    )
    stage3_max_live_parameters: int | None = Field(
        default=None, ge=1, description="stage 3: elements kept gathered"
    )
    stage3_prefetch_bucket_size: int | None = Field(
        default=None, ge=0, description="stage 3: elements fetched ahead"
    )
    offload_optimizer: Offload | None = Field(
        default=None, description="stages 2, 3: optimizer state in host memory"
    )
    offload_param: Offload | None = Field(
        default=None, description="stage 3: parameters in host memory"
    )

    @field_validator("stage", mode="before")
    @classmethod
    def _stage_is_a_number(cls, stage: Any) -> Any:
        if isinstance(stage, bool):  # pydantic reads true as 1
            raise ValueError("wanted 0, 1, 2 or 3")
        return stage

    @model_validator(mode="after")
    def _offload_needs_stage(self) -> "ZeroOptimization":
        if self.offload_optimizer and self.stage < 2:
            raise ValueError(
                f"offload_optimizer needs stage 2 or 3, got stage {self.stage}. Change one of them"
            )
        if self.offload_param and self.stage < 3:
            raise ValueError(
                f"offload_param needs stage 3, got stage {self.stage}. Change one of them"
            )
        return self


class ActivationCheckpointing(_Closed):
    """If present, attention blocks are computed again in backward (activation checkpointing)."""

    synchronize_checkpoint_boundary: bool = Field(
        default=False, description="synchronise CUDA at each block"
    )
    profile: bool = Field(
        default=False, description="log the time of each forward and recomputation"
    )

    refused: ClassVar = {
        key: f"is not supported: {why}. Remove it" for key, why in REFUSED_CHECKPOINTING.items()
    }


class DeepSpeedFile(_Closed):
    """A file of ds_configs/: ZeRO stage, precision, activation checkpointing. It has no "auto"."""

    zero_optimization: ZeroOptimization
    bf16: Bf16
    data_types: DataTypes | None = None
    communication_data_type: Literal["fp32", "bf16"] | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="type in which gradients travel between ranks [the type of the parameters]",
    )
    activation_checkpointing: ActivationCheckpointing | None = None
    zero_force_ds_cpu_optimizer: bool | None = Field(
        default=None,
        description="must be false with offload_optimizer: the optimizer is torch's, and nothing "
        "is compiled at the start",
    )
    wall_clock_breakdown: bool = Field(
        default=False, description="log forward, backward and step times"
    )

    refused: ClassVar = {
        key: f"does not belong in a DeepSpeed file. Set {field} in the grid"
        for key, field in OWNED_BY_THE_RUN.items()
    }

    @model_validator(mode="after")
    def _combinations(self) -> "DeepSpeedFile":
        if self.bf16.enabled and self.zero_optimization.stage == 0:
            raise ValueError(
                "bf16 at stage 0 is not supported. Use stage 1, also for one process: it keeps "
                "fp32 master weights"
            )
        if (
            self.zero_optimization.offload_optimizer
            and self.zero_force_ds_cpu_optimizer is not False
        ):
            raise ValueError(
                "offload_optimizer needs zero_force_ds_cpu_optimizer: false, because the optimizer "
                "is torch's. Add that line"
            )
        return self

    @property
    def precision(self) -> str:
        """bf16 or fp32."""
        if self.bf16.enabled:
            return "bf16"
        return "fp32"
