"""The ledger: every start of a run as a typed record. The host's side (host.py) writes it; this reads it.

Without pydantic, whose import costs a third of what `status` takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from furnace_hpc.runs import host
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.unchanged import while_unchanged
from furnace_hpc.spec.errors import ConfigError


@dataclass(frozen=True)
class Attempt:
    """`attempts/<n>.json`: one start of a run."""

    attempt: int  # counted from 1
    start_unix_s: float = 0.0
    end_unix_s: float | None = None  # none: it has not ended, or nobody was left to say so
    reason: str | None = None  # why it ended: a key of state.ENDED
    error: str = ""  # the exception's last line, or what is known
    step: int = 0  # last optimizer step that a rank reported
    code_hash: str = ""  # hash of the sources that decide numbers
    snapshot: str = ""  # code snapshot that it runs; none: the code of a hand-made start
    world_size: int | None = None
    gpus: int = 0  # GPUs that it was given
    signal_delay_s: float | None = None  # seconds before the time limit at which ranks hear
    data_dir: str = ""  # folder of the packed data set
    overrides: dict[str, Any] = field(default_factory=dict)  # fields that differ from spec.json; no identity
    job_id: str | None = None  # Slurm's job id
    cluster: str = ""  # Slurm's name of the cluster
    nodelist: str = ""  # nodes of its job, as Slurm writes them: `node[1-2]`
    blamed: tuple[str, ...] = ()  # those of them that a hang was seen on; none: not known
    holder: dict[str, Any] | None = None  # the process that frames the attempt

    @property
    def holder_host(self) -> str:
        """Host of the holder, in words."""
        return str((self.holder or {}).get("host", "an unknown host"))


@while_unchanged(lambda folder, number: [folder.attempt(number)])
def read_attempt(folder: RunFolder, number: int) -> Attempt:
    """One attempt of a run."""
    try:
        return _checked(host.read_attempt(str(folder.path), number))
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{folder.attempt(number)} is no record of an attempt ({error}): move it away") from None


def read_attempts(folder: RunFolder) -> list[Attempt]:
    """All attempts of a run, oldest first."""
    return [read_attempt(folder, number) for number in host.attempt_numbers(str(folder.path))]


def holder_is_alive(attempt: Attempt) -> bool | None:
    """Whether the attempt's holder lives; None when that cannot be seen from this host."""
    return host.is_alive(attempt.holder)


def _checked(record: Mapping[str, Any]) -> Attempt:
    """The attempt of a record; what it says beyond an attempt's fields is passed over."""
    known: dict[str, Any] = {}
    for name, kinds in _kinds().items():
        if name in record:
            value = record[name]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}")
            known[name] = float(record[name]) if float in kinds and value is not None else value
    known["blamed"] = tuple(map(str, known.get("blamed", ())))
    return Attempt(**known)


@cache
def _kinds() -> dict[str, tuple[type, ...]]:
    """Field -> what its value in JSON may be."""
    return {name: _kinds_of(hint) for name, hint in get_type_hints(Attempt).items()}


def _kinds_of(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds_of(part))
    return {float: (float, int), tuple: (list,)}.get(get_origin(hint) or hint, (get_origin(hint) or hint,))
