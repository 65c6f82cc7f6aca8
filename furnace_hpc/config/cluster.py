"""Define and read cluster profiles: executor, flags of a site, default resources."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from furnace_hpc.config.base import Config, Name, OneList
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import (
    check_is_own,
    find_file,
    is_path,
    names_of,
    read_with_source,
)
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.sbatch_flags import SbatchFlags
from furnace_hpc.config.parsing.text_safety import find_secret
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.parsing.webhook_file import read_webhook
from furnace_hpc.config.sections.container import Container
from furnace_hpc.config.sections.resources import Resources, RunsPerGpu, RunsPerNode
from furnace_hpc.config.train_config import TrainConfig


def _no_control_characters(text: str) -> str:
    """A newline in an #SBATCH value would end the comment, and the rest would run as shell."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("contains a control character. Write it on one line")
    return text


def _as_text(value: Any) -> Any:
    """YAML reads `gpu_type: 3090` as a number."""
    return str(value) if type(value) is int else value


GpuType = Annotated[  # a MIG type may contain a plus
    str,
    BeforeValidator(_as_text),
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"),
]
Line = Annotated[str, Field(max_length=1000), AfterValidator(_no_control_characters)]


class TrackerTarget(Config):
    """A tracker to which the runs are mirrored. It is not part of a run's identity."""

    to: Literal["tensorboard", "wandb", "mlflow", "trackio"] = Field(description="the tracker")
    at: Line | None = Field(
        default=None,
        description="folder of tensorboard and trackio, address of mlflow's server or of your own "
        "W&B server [runs/<grid>/trackers/tensorboard, trackio's folder, $MLFLOW_TRACKING_URI, "
        "W&B's cloud]",
    )
    project: Line | None = Field(
        default=None,
        description="project of wandb (or entity/project) and trackio, experiment of mlflow [the "
        "grid's name]",
    )
    offline: bool = Field(
        default=False, description="wandb: write folders for `wandb sync`, without network"
    )

    @model_validator(mode="after")
    def _options_fit(self) -> "TrackerTarget":
        if self.offline and self.to != "wandb":
            raise ValueError(f"offline needs wandb, not {self.to}. Remove it")
        if self.to == "tensorboard" and self.project:
            raise ValueError("tensorboard has no projects. Remove project, or give a folder")
        if find_secret(self.at or "") is not None:
            raise ValueError(
                "the address contains a password, which the profile would copy. Give it in the "
                "environment, such as MLFLOW_TRACKING_PASSWORD or WANDB_API_KEY"
            )
        return self


def _absolute(text: str) -> str:
    """Jobs have another working directory."""
    if not text.startswith(("/", "~/")):
        raise ValueError("wanted the absolute path of a file, or one that begins with ~/")
    return text


AbsolutePath = Annotated[Line, AfterValidator(_absolute)]


class ClusterProfile(Config):
    """`slurm/clusters/<name>.yaml`. A flag that is null is not passed to sbatch."""

    name: Name = Field(description="name of the profile, for --cluster")
    executor: Literal["slurm", "local"] = Field(
        description="slurm: arrays through sbatch; local: a queue on this machine"
    )
    cluster_name: Line | None = Field(
        default=None, description="Slurm's ClusterName, by which `--cluster auto` finds the profile"
    )
    nodes: int = Field(default=1, ge=1, description="nodes of a run, unless its grid sets them")
    processes_per_node: int = Field(
        default=1, ge=1, description="ranks per node of a run, unless its grid sets them"
    )
    gpus_per_node: int | None = Field(
        default=None, ge=0, description="GPUs to request on each node [as many as ranks]"
    )
    gpu_flag: Literal["gpus_per_node", "gpus_per_task", "gres"] | None = Field(
        default="gpus_per_node",
        description="flag that requests GPUs at this site; null: no flag",
    )
    gpu_type: GpuType | None = Field(default=None, description="type of GPU, as in gpu:a100:4")
    partition: Annotated[Line, OneList] | None = Field(
        default=None, description="partition, or several (a list, or comma-separated)"
    )
    account: Line | None = Field(default=None, description="account to charge")
    qos: Line | None = Field(default=None, description="quality of service")
    constraint: Line | None = Field(default=None, description="features that nodes must have")
    cpus_per_task: int | None = Field(default=None, ge=1, description="cores of each rank")
    mem_gb: int | None = Field(
        default=None, ge=0, description="memory of each node in Slurm's GB (1,024 MB). 0: all of it"
    )
    wckey: Line | None = Field(default=None, description="workload key, if the site requires one")
    signal_delay_s: int = Field(
        default=120, ge=10, description="seconds from the stop signal to the time limit"
    )
    array_parallelism: int = Field(
        default=32, ge=1, description="array elements that may run at the same time"
    )
    max_array_size: int | None = Field(
        default=None,
        ge=2,
        description="most elements of an array, and highest index + 1 [Slurm's MaxArraySize, or "
        "max_array_tasks of its SchedulerParameters]",
    )
    max_submit_jobs: int | None = Field(
        default=None,
        ge=3,
        description="jobs that you may have at a time, array elements included [Slurm's limits]",
    )
    follow_up: bool = Field(
        default=True,
        description="after each wave, a small job submits the next one and retries, and the last "
        "one makes the table; false: you run these commands",
    )
    follow_up_partition: Line | None = Field(
        default=None, description="partition of follow-up jobs [as the runs]"
    )
    trackers: tuple[TrackerTarget, ...] = Field(
        default=(),
        description="trackers to which follow-up jobs mirror the runs, such as `[{to: "
        "tensorboard}]`. The local queue does it at its end",
    )
    retries: int = Field(
        default=2,
        ge=0,
        description="times that follow-up jobs submit an interrupted run again. After a time limit "
        "or a preemption it does not count",
    )
    exclude_after_failures: int | None = Field(
        default=2,
        ge=1,
        description="exclude a node from a grid after this many of its attempts failed, hung or "
        "did not start there; null: never",
    )
    shared_folders: tuple[Line, ...] = Field(
        default=(),
        description="folders that compute nodes see too. The runs must be below one of them [not "
        "checked]",
    )
    group: bool = Field(
        default=False,
        description="true: your Unix group may read and write the runs (folders 0770, files 0660), "
        "and its files are loaded. false: only you may (0700, 0600)",
    )
    python: Line | None = Field(
        default=None,
        description="Python of the ranks [the one that submits; python3 inside a container]",
    )
    setup: tuple[Line, ...] = Field(
        default=(),
        description="shell lines that run on the first node of each job, such as module load. If "
        "one fails, the job ends",
    )
    srun_args: tuple[Line, ...] = Field(
        default=(), description="additional arguments of srun, such as --mpi=pmix"
    )
    network_interface: Name | None = Field(
        default=None, description="network interface of gloo and NCCL [they choose]"
    )
    scratch: Line | None = Field(
        default=None,
        description="folder on each node's own disk, such as $TMPDIR of the node. Packed data are "
        "copied there once per node [they are read in place]",
    )
    sbatch: SbatchFlags = Field(
        default={},
        description="further flags of sbatch, such as `{reservation: x, exclusive: true}`",
    )
    container: Container | None = Field(
        default=None, description="image in which the ranks run [they run on the host]"
    )
    stage_python: bool = Field(
        default=False,
        description="true: each node copies the ranks' Python environment to `scratch` once, and "
        "ranks start from there",
    )
    timeout_min: int = Field(
        default=60,
        ge=1,
        description="time limit of one attempt in minutes, if the grid has timeout_min: auto and "
        "no run of that kind was measured",
    )
    notify: AbsolutePath | None = Field(
        default=None,
        description="file of mode 0600 that contains the URL of a webhook. One JSON object is "
        "posted there when all runs of a submission have ended",
    )
    runs_per_node: RunsPerNode | None = Field(
        default=None,
        description="runs of one node that share it, as parts of one job. `auto`: gpus_per_node "
        "divided by the ranks of a run. In a local queue: runs at the same time [Slurm: 1; local: "
        "as many as fit]",
    )
    runs_per_gpu: RunsPerGpu | None = Field(
        default=None,
        description="runs of one rank that use one GPU at the same time, with MPS or time slicing. "
        "Above 1, runs_per_node is `auto` by default [1]",
    )

    @model_validator(mode="after")
    def _containers_need_slurm(self) -> "ClusterProfile":
        if self.container and self.executor != "slurm":
            raise ValueError(
                "container needs executor: slurm. Remove it: the local queue starts ranks with "
                "this Python"
            )
        return self

    @model_validator(mode="after")
    def _staged_python_needs_scratch(self) -> "ClusterProfile":
        if self.stage_python and not self.scratch:
            raise ValueError("stage_python needs scratch, a folder on each node's own disk. Set it")
        if self.stage_python and self.container:
            raise ValueError(
                "stage_python and container exclude each other: an image is one file already. "
                "Remove stage_python"
            )
        return self

    @model_validator(mode="after")
    def _follow_up_jobs_send(self) -> "ClusterProfile":
        if self.notify and self.executor == "slurm" and not self.follow_up:
            raise ValueError(
                "notify needs follow_up: true, because the last follow-up job sends the "
                "notification. Remove one of them"
            )
        if self.trackers and self.executor == "slurm" and not self.follow_up:
            raise ValueError(
                "trackers need follow_up: true, because follow-up jobs mirror the runs. Set it, or "
                "remove trackers and call `furnace track`"
            )
        return self

    def gpus(self, nodes: int, processes_per_node: int) -> int:
        """GPUs of a job: one per rank, unless the profile sets the number."""
        per_node = self.gpus_per_node
        if per_node is None:
            per_node = processes_per_node
        return nodes * per_node

    def shape(self, resources: Resources) -> tuple[int, int]:
        """(nodes, processes_per_node) of a run, from its grid or else from this profile."""
        nodes = resources.nodes or self.nodes
        return nodes, resources.processes_per_node or self.processes_per_node


def check_portable(profile: ClusterProfile, config: TrainConfig, resources: Resources) -> None:
    """Raise ConfigError if the ranks of a portable run would get GPUs. The local queue gives none.

    DeepSpeed's variable DS_ACCELERATOR keeps ranks on the CPU.
    """
    if not config.portable or profile.executor != "slurm" or profile.gpu_flag is None:
        return
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    on_cpu = on_cpu or any("DS_ACCELERATOR=cpu" in line for line in profile.setup)
    gpus = profile.gpus(*profile.shape(resources))
    if gpus and not on_cpu:
        raise ConfigError(
            f"portable: true trains on CPUs, and cluster {profile.name!r} gives each run "
            f"{counted(gpus, 'GPU')}. Add --set portable=false, or use a profile with "
            f"gpus_per_node: 0"
        )


def load_profile(name: str) -> ClusterProfile:
    """Read a cluster profile by name or path.

    Raises:
        ConfigError: an unknown name, a file that others can change, or all problems of the file.
    """
    path = find_file("cluster", name)
    if not is_path(name):
        check_is_own(path)
    content, source = read_with_source(path)
    _refuse_url(content, path)
    profile = validate(ClusterProfile, content, str(path), source.at)
    if profile.notify:
        read_webhook(profile.notify)
    return profile


def _refuse_url(content: Any, path: Path) -> None:
    """Raise ConfigError if `notify` is a URL. The error does not show it."""
    given = content.get("notify") if isinstance(content, dict) else None
    if isinstance(given, str) and "://" in given:
        raise ConfigError(
            f"{path}: notify: got a URL, which would be copied to each submission. Write it into a "
            f"file of mode 0600, and give the file's path (`notify: ~/.config/furnace/webhook`)"
        )


def profile_names() -> list[str]:
    """Names of all profiles that can be found from here."""
    return names_of("cluster")
