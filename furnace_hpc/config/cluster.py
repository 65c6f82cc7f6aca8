"""Facts of a machine: which executor, which flags a site takes, what a run gets when its grid does not say."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from furnace_hpc.config.base import Config, Name, OneList
from furnace_hpc.config.parsing.lookup import (
    FOLDERS,
    check_is_own,
    find_file,
    is_path,
    read_written,
    shipped_roots,
)
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.train_config import Resources


def _no_control_characters(text: str) -> str:
    """A newline in an #SBATCH value would end the comment, and the rest would run as shell."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("holds a control character: write it on one line")
    return text


# YAML reads `gpu_type: 3090` as a number; a MIG type may hold a plus.
GpuType = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"),
]
Line = Annotated[str, Field(max_length=1000), AfterValidator(_no_control_characters)]


class ClusterProfile(Config):
    """`slurm/clusters/<name>.yaml`. A flag set to null is not given to sbatch at all."""

    name: Name = Field(description="what --cluster calls it")
    executor: Literal["slurm", "local"] = Field(
        description="slurm: one array through sbatch; local: a queue on this machine"
    )
    cluster_name: Line | None = Field(
        default=None, description="Slurm's ClusterName; `--cluster auto` finds the profile by it"
    )
    nodes: int = Field(default=1, ge=1, description="nodes of a run whose grid does not say")
    processes_per_node: int = Field(
        default=1, ge=1, description="ranks per node of a run whose grid does not say"
    )
    gpus_per_node: int | None = Field(
        default=None, ge=0, description="GPUs asked for on each node; none: as many as ranks"
    )
    gpu_flag: Literal["gpus_per_node", "gpus_per_task", "gres"] | None = Field(
        default="gpus_per_node",
        description="how the site wants GPUs asked for; null: it takes no GPU flag",
    )
    gpu_type: GpuType | None = Field(
        default=None, description="a type before the number, as in gpu:a100:4"
    )
    partition: Annotated[Line, OneList] | None = Field(
        default=None, description="partition(s), comma-separated"
    )
    account: Line | None = Field(default=None, description="account that pays")
    qos: Line | None = Field(default=None, description="quality of service")
    constraint: Line | None = Field(default=None, description="features that nodes must have")
    cpus_per_task: int | None = Field(default=None, ge=1, description="cores of each rank")
    mem_gb: int | None = Field(
        default=None, ge=1, description="memory of each node, as Slurm counts GB"
    )
    wckey: Line | None = Field(default=None, description="workload key, where the site wants one")
    signal_delay_s: int = Field(
        default=120, ge=10, description="seconds before the time limit at which ranks are told"
    )
    array_parallelism: int = Field(
        default=32, ge=1, description="array elements that may run at the same time"
    )
    max_array_size: int | None = Field(
        default=None,
        ge=2,
        description="an array's highest index + 1; none: as Slurm says (MaxArraySize)",
    )
    max_submit_jobs: int | None = Field(
        default=None,
        ge=3,
        description="jobs you may have at a time, array elements counted; none: as accounting says",
    )
    follow_up: bool = Field(
        default=True,
        description="a small job after each wave sends the next one, retries and aggregates; false: you do",
    )
    follow_up_partition: Line | None = Field(
        default=None, description="partition of that job; none: as the others"
    )
    retries: int = Field(
        default=2, ge=0, description="times that a follow-up job sends an interrupted run again"
    )
    exclude_after_failures: int | None = Field(
        default=2,
        ge=1,
        description="a node on which so many attempts of a grid hung, or never started, or that failed so often, gets "
        "no more of its runs; null: it always does",
    )
    shared_folders: tuple[Line, ...] = Field(
        default=(),
        description="folders that compute nodes see too; the runs must lie below one; none: not checked",
    )
    group: bool = Field(
        default=False,
        description="your Unix group may read and write the runs (folders 0770, files 0660), and what it wrote is "
        "loaded; false: 0700 and 0600, and it is not",
    )
    python: Line | None = Field(
        default=None, description="Python of the ranks; none: the one that submits"
    )
    setup: tuple[Line, ...] = Field(
        default=(),
        description="shell lines on each job's first node, e.g. module load; the job ends where one fails",
    )
    srun_args: tuple[Line, ...] = Field(default=(), description="more arguments of srun")
    network_interface: Name | None = Field(
        default=None, description="for gloo and NCCL; none: they choose"
    )
    scratch: Line | None = Field(
        default=None,
        description="a folder on each node's own disk, e.g. $TMPDIR (the node's): packed data are copied there, once "
        "per node, before they are read; none: they are read where they are",
    )

    def gpus(self, nodes: int, processes_per_node: int) -> int:
        """GPUs of a job: as many as ranks, where the profile does not say."""
        return nodes * (processes_per_node if self.gpus_per_node is None else self.gpus_per_node)

    def shape(self, wish: Resources) -> tuple[int, int]:
        """(nodes, processes_per_node) of a run: its wish, else this machine's default."""
        return wish.nodes or self.nodes, wish.processes_per_node or self.processes_per_node


def load_profile(name: str) -> ClusterProfile:
    """Read a cluster profile by name or path.

    Raises:
        ConfigError: unknown name; a file in the working directory that others could change; or every problem of the
            file at once.
    """
    path = find_file("cluster", name)
    if not is_path(name):
        check_is_own(path)
    content, written = read_written(path)
    return validate(ClusterProfile, content, str(path), written.at)


def profile_names() -> list[str]:
    """Names of all profiles that can be found from here."""
    folders = [root / FOLDERS["cluster"] for root in shipped_roots()]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
