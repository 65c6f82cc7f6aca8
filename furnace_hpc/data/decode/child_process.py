"""Start a child process that decodes files, and interpret its exit code."""

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from furnace_hpc.data.decode.reading import MEMORY_BYTES, Position, Watch, read_position

MAX_CPU_S = 300.0  # processor time per file. The largest image takes less than 30 s.
MAX_WALL_S = 1800.0  # wall time per file. A file system may stall for minutes.
# Exit code -> how many processes may end this way at a file before the file is refused. A kill
# may come from outside.
_ENDS = {-signal.SIGPROF: 1, -signal.SIGKILL: 3, -signal.SIGTERM: 3}
_CAUSES = {
    -signal.SIGPROF: "reading it took more than {cpu:.0f} s of processor time",
    -signal.SIGALRM: "reading it took more than {wall:.0f} s",
    -signal.SIGKILL: "the process that read it was killed, probably because memory was full",
}


class Child:
    """A process that gets work through a pipe and writes its current file to shared memory."""

    def __init__(self, context: Any, serve: Callable[..., None], *arguments: Any) -> None:
        self._memory = context.RawArray("c", MEMORY_BYTES)
        self.pipe, theirs = context.Pipe()
        watched = (serve, theirs, self._memory, MAX_CPU_S, MAX_WALL_S, arguments)
        self.process = context.Process(target=_watched, args=watched, daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> tuple[int, Position]:
        """Wait until the process ends. Return its exit code and its last position."""
        self.process.join()
        self.pipe.close()
        return self.process.exitcode, read_position(self._memory)


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
    """Return how many processes may end with this code at a file before the file is refused."""
    return _ENDS.get(code, 2)


def cause_of(code: int) -> str:
    """Return why the process ended, for the refusal of the file that it was reading."""
    cause = _CAUSES.get(code, f"the process that read it crashed ({name_of(code)})")
    return cause.format(cpu=MAX_CPU_S, wall=MAX_WALL_S)


def name_of(code: int) -> str:
    """Return the signal of an exit code, or the code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"
