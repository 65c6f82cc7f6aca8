"""The section `resources`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from furnace_hpc.config.base import Config, Partitions
from furnace_hpc.config.parsing.numbers import wanted_number
from furnace_hpc.config.parsing.sbatch_flags import SbatchFlags

AUTO = "auto"  # of timeout_min: chosen from measured runs


def _timeout_min(value: Any) -> Any:
    """Validate a time limit, so that an error has one reason."""
    if value == AUTO:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(wanted_number("timeout_min", value))
    if value < 1:
        raise ValueError(f"timeout_min is {value}. Use at least 1, or auto")
    return value


TimeoutMin = Annotated[int | Literal["auto"], BeforeValidator(_timeout_min)]

RunsPerNode = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
RunsPerGpu = Annotated[int, Field(ge=1, le=48)]  # clients of one GPU that MPS accepts


class Resources(Config):
    """Resources of a run. They are not part of its identity. None: the cluster profile decides."""

    nodes: int | None = Field(default=None, ge=1, le=10_000, description="nodes of one run")
    processes_per_node: int | None = Field(
        default=None, ge=1, le=1024, description="ranks on each node (one per GPU)"
    )
    timeout_min: TimeoutMin = Field(
        default=60,
        description="time limit of one attempt, minutes. auto: from measured runs of the same kind "
        "[timeout_min of the profile]",
    )
    partition: Partitions | None = Field(
        default=None,
        description="replaces the profile's partition. Of several (a list, or comma-separated), "
        "Slurm chooses one",
    )
    max_attempts: int = Field(
        default=20,
        ge=1,
        description="attempts of one run, requeues included, after which it is given up",
    )
    max_idle_attempts: int = Field(
        default=3,
        ge=1,
        description="attempts in a row without a new step, after which the run is given up",
    )
    max_gpu_hours: float | None = Field(
        default=None,
        gt=0,
        description="GPU-hours of all attempts of one run, after which it is given up [no limit]",
    )
    sbatch: SbatchFlags = Field(
        default={},
        description="further flags of sbatch. A flag replaces the profile's, and null removes it",
    )
    runs_per_node: RunsPerNode | None = Field(
        default=None,
        description="replaces the profile's runs_per_node: runs that share one node and one job",
    )
    runs_per_gpu: RunsPerGpu | None = Field(
        default=None,
        description="replaces the profile's runs_per_gpu: runs that use one GPU at the same time",
    )
