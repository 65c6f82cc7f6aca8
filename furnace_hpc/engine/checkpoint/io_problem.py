"""Errors of file work, as values that ranks can exchange."""

from collections.abc import Callable
from typing import NamedTuple

from furnace_hpc.runs.folder import TRANSIENT_ERRNOS


class IoProblem(NamedTuple):
    """Why file work failed on one rank."""

    transient: bool
    """Whether a retry may succeed, such as after a full disk."""
    message: str


def try_io(work: Callable[[], None]) -> IoProblem | None:
    """Do the work. Return its problem, or None if it succeeded.

    An exception on one rank would leave the other ranks waiting in a collective.
    """
    try:
        work()
    except OSError as error:
        return IoProblem(error.errno in TRANSIENT_ERRNOS, f"{type(error).__name__}: {error}")
    except RuntimeError as error:
        return IoProblem(False, str(error))
    except Exception as error:
        return IoProblem(False, f"{type(error).__name__}: {error}")
    return None


def worst(problems: list[IoProblem | None]) -> IoProblem | None:
    """A permanent problem if there is one, else a transient one. None if no rank has a problem."""
    return min((problem for problem in problems if problem), default=None)
