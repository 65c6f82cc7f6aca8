"""The ledger: every start of a run as a typed record. The host's side (lifecycle.py) writes it; this reads it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import RunFolder


class Attempt(BaseModel):
    """`attempts/<n>.json`: one start of a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int = Field(description="counted from 1")
    start_unix_s: float = 0.0
    end_unix_s: float | None = Field(
        default=None, description="none: it has not ended, or nobody was left to say so"
    )
    reason: str | None = Field(default=None, description="why it ended: a key of state.ENDED")
    error: str = Field(default="", description="the exception's last line, or what is known")
    step: int = Field(default=0, description="last optimizer step that a rank reported")
    code_hash: str = Field(default="", description="hash of the sources that decide numbers")
    snapshot: str = Field(
        default="", description="code snapshot that it runs; none: the code of a hand-made start"
    )
    world_size: int | None = None
    gpus: int = Field(default=0, description="GPUs that it was given")
    signal_delay_s: float | None = Field(
        default=None, description="seconds before the time limit at which ranks hear"
    )
    data_dir: str = Field(default="", description="folder of the packed data set")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="fields that differ from spec.json; no identity"
    )
    job_id: str | None = Field(default=None, description="Slurm's job id")
    cluster: str = Field(default="", description="Slurm's name of the cluster")
    nodelist: str = Field(
        default="", description="nodes of its job, as Slurm writes them: `node[1-2]`"
    )
    blamed: tuple[str, ...] = Field(
        default=(), description="those of them that a hang was seen on; none: not known"
    )
    holder: dict[str, Any] | None = Field(
        default=None, description="the process that frames the attempt"
    )

    @property
    def holder_host(self) -> str:
        """Host of the holder, in words."""
        return str((self.holder or {}).get("host", "an unknown host"))


@cached_by_stat(lambda folder, number: [folder.attempt(number)])
def read_attempt(folder: RunFolder, number: int) -> Attempt:
    """One attempt of a run."""
    try:
        return Attempt.model_validate(lifecycle.read_attempt(str(folder.path), number))
    except (ValueError, TypeError, RecursionError) as error:
        words = str(error).splitlines()[0]
        raise ConfigError(
            f"{folder.attempt(number)} is no record of an attempt ({words}): move it away"
        ) from None


def read_attempts(folder: RunFolder) -> list[Attempt]:
    """All attempts of a run, oldest first."""
    return [read_attempt(folder, number) for number in lifecycle.attempt_numbers(str(folder.path))]


def holder_is_alive(attempt: Attempt) -> bool | None:
    """Whether the attempt's holder lives; None when that cannot be seen from this host."""
    return lifecycle.is_alive(attempt.holder)
