"""Read the attempts of a run as typed records. The host writes them (host/lifecycle.py)."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.file_cache import cached_by_stat, once_per_look
from furnace_hpc.runs.folder import RunFolder, may_exist


class Attempt(BaseModel):
    """`attempts/<n>.json`: one start of a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int = Field(description="counted from 1")
    start_unix_s: float = 0.0
    end_unix_s: float | None = Field(
        default=None, description="None while it runs, or if it was killed with its node"
    )
    reason: str | None = Field(default=None, description="why it ended: a key of END_REASONS")
    error: str = Field(default="", description="last line of the exception, or other details")
    step: int = Field(default=0, description="last optimizer step that a rank reported")
    code_hash: str = Field(default="", description="hash of the sources that decide numbers")
    snapshot: str = Field(default="", description="code snapshot; empty for a start by hand")
    world_size: int | None = None
    gpus: int | float = Field(
        default=0, description="number of GPUs; below 1: its part of a GPU that runs share"
    )
    signal_delay_s: float | None = Field(
        default=None, description="seconds between the stop signal and the time limit"
    )
    data_dir: str = Field(default="", description="folder of the packed data set")
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="config fields that differ from spec.json; none changes the identity",
    )
    next_overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="overrides that the next attempt adds, after this one was out of memory",
    )
    job_id: str | None = Field(default=None, description="Slurm's job id")
    cluster: str = Field(default="", description="Slurm's name of the cluster")
    nodelist: str = Field(default="", description="nodes of its job in Slurm's form: `node[1-2]`")
    blamed: tuple[str, ...] = Field(
        default=(), description="nodes whose ranks hung or whose GPU failed; empty if not known"
    )
    runs_per_node: int = Field(default=1, description="runs that share the node and the job")
    runs_per_gpu: int = Field(default=1, description="runs that use a GPU at the same time")
    gpu_sharing: str = Field(default="", description="how runs share GPUs, and why not with MPS")
    holder: dict[str, Any] | None = Field(
        default=None, description="the process that starts and ends the attempt"
    )
    nodes: int | None = None
    partition: str | None = Field(default=None, description="partition that its job asked for")
    stop_after_steps: int | None = Field(
        default=None, description="steps after which a canary stops; None if it is no canary"
    )

    weights_fingerprints: dict[str, str] = Field(
        default_factory=dict,
        description="config key of an encoder or a source of `init_from` -> hash of its weights "
        "at submission",
    )

    @property
    def holder_host(self) -> str:
        """Host of the holder."""
        return str((self.holder or {}).get("host", "an unknown host"))


@dataclass(frozen=True)
class AttemptHistory:
    """All attempts of one run, oldest first. Read it once and pass it on."""

    attempts: tuple[Attempt, ...] = ()

    @classmethod
    def read(cls, folder: RunFolder) -> "AttemptHistory":
        """Read every attempt of a run. A run without a folder has none."""
        return cls(tuple(read_attempts(folder)))

    @property
    def first(self) -> Attempt | None:
        """The oldest attempt. None if there is none."""
        return next(iter(self.attempts), None)

    @property
    def newest(self) -> Attempt | None:
        """The newest attempt. None if there is none."""
        return next(reversed(self.attempts), None)

    @property
    def first_trained(self) -> Attempt | None:
        """The oldest attempt that trained a step. None if there is none."""
        return next((attempt for attempt in self.attempts if attempt.step), None)


@cached_by_stat(lambda folder, number: [f"{folder.path}/attempts/{number}.json"])
def read_attempt(folder: RunFolder, number: int) -> Attempt:
    """Read one attempt of a run."""
    try:
        return Attempt.model_validate(lifecycle.read_attempt(str(folder.path), number))
    except (ValueError, TypeError, RecursionError) as error:
        path, problem = folder.attempt(number), str(error).splitlines()[0]
        raise ConfigError(f"{path} is no record of an attempt ({problem}): move it away") from None


@once_per_look
def read_attempts(folder: RunFolder) -> list[Attempt]:
    """Read all attempts of a run, oldest first."""
    if not may_exist(folder):
        return []
    return [read_attempt(folder, number) for number in lifecycle.attempt_numbers(str(folder.path))]


def holder_is_alive(attempt: Attempt) -> bool | None:
    """Return whether the attempt's holder runs. None if this host cannot see that."""
    return lifecycle.is_alive(attempt.holder)
