"""The section `resources`."""

from typing import Annotated, Literal

from pydantic import Field

from furnace_hpc.config.base import Config, Partitions

RunsPerNode = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]


class Resources(Config):
    """Resources of a run. They are not part of its identity. None: the cluster profile decides."""

    nodes: int | None = Field(default=None, ge=1, le=10_000, description="nodes of one run")
    processes_per_node: int | None = Field(
        default=None, ge=1, le=1024, description="ranks on each node (one per GPU)"
    )
    timeout_min: int = Field(default=60, ge=1, description="time limit of one attempt, minutes")
    partition: Partitions | None = Field(
        default=None,
        description="replaces the profile's partition. Of several, comma-separated, Slurm chooses "
        "one",
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
    runs_per_node: RunsPerNode | None = Field(
        default=None,
        description="replaces the profile's runs_per_node: runs that share one node and one job",
    )
