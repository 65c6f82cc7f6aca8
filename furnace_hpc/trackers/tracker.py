"""The protocol between a mirror and a tracker, and what they exchange."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from furnace_hpc.config.errors import ConfigError


class Delivery(StrEnum):
    """Which records of a run a tracker needs."""

    APPEND = "append"  # new records; it can also replace all records of a run
    WHOLE = "whole"  # all records, whenever there is a new one
    # new records below the newest checkpoint, because it cannot delete a record
    SETTLED = "settled"


class Start(StrEnum):
    """What the records of an update follow."""

    APPEND = "append"  # the records that were sent before
    FIRST = "first"  # nothing, as far as the cursor knows
    REPLACE = "replace"  # nothing: the tracker's records of the run are not valid any more


class Record(NamedTuple):
    """The numbers of one line of a run's metrics."""

    step: int
    kind: str  # train or val
    time_s: float  # seconds since 1970; the same for the same line
    values: dict[str, float]


@dataclass(frozen=True)
class RunInfo:
    """What a tracker shows of a run beside its curves."""

    run_id: str
    grid: str
    variant: str
    seed: int | None
    start_s: float  # seconds since 1970 at the start of the first attempt
    state: str  # running, done, interrupted or failed, from the run's files
    config: dict[str, Any] = field(default_factory=dict)  # dotted key -> value
    tags: dict[str, str] = field(default_factory=dict)
    # final metrics and costs: name -> (step, value). A value never changes.
    summary: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Grid, variant and seed, for trackers whose tags have no value."""
        found = [f"grid:{self.grid}", f"variant:{self.variant}"]
        if self.seed is not None:
            found.append(f"seed:{self.seed}")
        return found


@dataclass(frozen=True)
class Update:
    """New records of one run, and its other facts."""

    start: Start
    info: RunInfo
    records: Sequence[Record]
    all_records: Callable[[], Sequence[Record]]  # that count so far


class Lost(Exception):
    """The tracker has lost records that the cursor names. All records must be sent again."""


class Tracker(Protocol):
    """One tracker. It is opened once per pass over a grid."""

    @property
    def delivery(self) -> Delivery:
        """Which records it needs."""
        ...

    @property
    def place(self) -> str:
        """Where the user finds the runs, for the last line of the command."""
        ...

    def send(self, update: Update, state: dict[str, Any]) -> dict[str, Any]:
        """Send an update, and return what the cursor must store for the next one.

        Sending the same update again changes nothing: a kill may have come before the cursor was
        written.

        Args:
            update: what is new.
            state: what the last call for this run returned. Empty if there was none.

        Raises:
            Lost: the tracker has lost records that `state` names.
            UnavailableError: the tracker does not answer.
            ConfigError: it refuses the data.
        """
        ...

    def close(self) -> None:
        """End the pass."""
        ...


def missing(extra: str) -> ConfigError:
    """The error for a tracker whose package is not installed."""
    return ConfigError(
        f"--to {extra} needs the package {extra}, which is not installed. Run "
        f"pip install 'furnace-hpc[{extra}]'"
    )


def library(name: str) -> Any:
    """Import a module of a tracker's library.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise missing(package) from None
        problem: ImportError = error
    except ImportError as error:
        problem = error
    raise ConfigError(
        f"--to {package}: {name} cannot be imported ({problem}). Run "
        f"pip install --upgrade 'furnace-hpc[{package}]'"
    )
