"""Start the queue of this machine as a process of its own, which outlives its caller.

The Python API submits so. The process (api/queue_process.py) gets the options through a pipe, and
answers with the plan when the queue starts.
"""

import pickle
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.launch.grids.options import Options
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.monitor.local_queue import live_queue
from furnace_hpc.runs.folder import GridFolder

PROCESS = "furnace_hpc.api.queue_process"  # the module that runs it
LOG = "queue.log"  # in the folder of the submission
STOPPED = 130  # exit code


@dataclass(frozen=True)
class Answer:
    """The answer of the process of a queue: a plan, or an error."""

    plan: Plan | None = None
    notices: tuple[str, ...] = ()
    log: Path | None = None  # None if there was nothing to do
    error: str = ""
    is_unavailable: bool = False  # whether trying again may help


@dataclass(frozen=True)
class BackgroundQueue:
    """The process of a queue that this process has started."""

    process: "subprocess.Popen[bytes]"
    log: Path | None

    def stop(self) -> None:
        """Ask the runs to save and exit, and wait for it. Ctrl-C in between kills them."""
        self.process.terminate()
        try:
            self.process.wait()
        except KeyboardInterrupt:
            self.process.terminate()
            self.process.wait()
            raise

    def check(self) -> None:
        """Raise ConfigError if the queue has ended by an error."""
        code = self.process.poll()
        if code in (None, 0, STOPPED) or self.log is None:
            return
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no message")
        raise ConfigError(
            f"the queue on this machine ended (exit code {code}): "
            f"{last.removeprefix('error: ')}. See {self.log}, then submit again"
        )


_STARTED: dict[Path, BackgroundQueue] = {}  # folder of a grid -> the newest queue of this process


def start_queue(options: Options, rows: list[GridRow]) -> Answer:
    """Start a queue, and return when it has written its submission, or has nothing to do.

    Raises:
        ConfigError: as `submit_grid`.
    """
    command = [sys.executable, "-P", "-m", PROCESS]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C in a terminal must not reach it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(pickle.dumps((options, rows)))
            with process.stdout as pipe:
                content = pipe.read()
        except BaseException:  # such as Ctrl-C
            process.terminate()
            process.wait()
            raise
        if not content:
            process.wait()
            errors.seek(0)
            text = errors.read().decode("utf-8", "replace").strip() or "no message"
            raise ConfigError(f"the queue on this machine did not start: {text.splitlines()[-1]}")
    answer: Answer = pickle.loads(content)
    if answer.error:
        process.wait()
        raise (UnavailableError if answer.is_unavailable else ConfigError)(answer.error)
    _STARTED[options.folder.path.resolve()] = BackgroundQueue(process, answer.log)
    return answer


def own_queue(folder: GridFolder) -> BackgroundQueue | None:
    """Return the newest queue that this process has started for a grid."""
    return _STARTED.get(folder.path.resolve())


def has_queue(folder: GridFolder) -> bool:
    """Whether a queue on this machine works on a grid, whichever process has started it."""
    if own := own_queue(folder):
        own.process.poll()  # otherwise it stays as a zombie
    return bool(live_queue(folder))
