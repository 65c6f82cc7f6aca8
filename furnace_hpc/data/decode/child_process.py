"""A child process that decodes files, and what its end means."""

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from furnace_hpc.data.decode.reading import PLACE_BYTES, At, Watch, read_place

MAX_CPU_S = 300.0  # processor time of one file; the largest image takes less than 30 s
MAX_WALL_S = 1800.0  # of one file; a file system may stall for minutes
# Ends of a process by the same file before the file is refused. A kill may come from outside.
_ENDS = {-signal.SIGPROF: 1, -signal.SIGKILL: 3, -signal.SIGTERM: 3}
_HOW = {
    -signal.SIGPROF: "reading it took more than {cpu:.0f} s of processor time",
    -signal.SIGALRM: "reading it took more than {wall:.0f} s",
    -signal.SIGKILL: "the process that read it was killed, probably because memory was full",
}


class Child:
    """A process that is fed through a pipe, and tells in shared memory what it reads."""

    def __init__(self, context: Any, serve: Callable[..., None], *arguments: Any) -> None:
        self._memory = context.RawArray("c", PLACE_BYTES)
        self.pipe, theirs = context.Pipe()
        watched = (serve, theirs, self._memory, MAX_CPU_S, MAX_WALL_S, arguments)
        self.process = context.Process(target=_watched, args=watched, daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> tuple[int, At]:
        """Wait for the end of the process; return its exit code, and what it was reading."""
        self.process.join()
        self.pipe.close()
        return self.process.exitcode, read_place(self._memory)


def _watched(
    serve: Callable[..., None],
    pipe: Connection,
    memory: Any,
    cpu_s: float,
    wall_s: float,
    arguments: tuple[Any, ...],
) -> None:
    serve(pipe, Watch(memory, cpu_s, wall_s), *arguments)


def ends_allowed(code: int) -> int:
    """How many processes a file may end in this way before it is refused."""
    return _ENDS.get(code, 2)


def how_it_ended(code: int) -> str:
    """What an exit code means for the file that was read."""
    how = _HOW.get(code, f"the process that read it crashed ({name_of(code)})")
    return how.format(cpu=MAX_CPU_S, wall=MAX_WALL_S)


def name_of(code: int) -> str:
    """The signal of an exit code, or the code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"
