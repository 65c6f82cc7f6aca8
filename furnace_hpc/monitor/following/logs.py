"""Print new lines of the logs of runs until the runs end, over all attempts."""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.host.regular_file import open_regular
from furnace_hpc.monitor.logs import Wanted, line_filter, log_files
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.file_cache import one_look
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.attempts import read_attempt
from furnace_hpc.runs.state import RunState, RunStatus

READ_S = 0.5  # between two reads of the logs
STATUS_S = 3.0  # between two looks at the states; commands share Slurm's answers for longer
BLOCK_BYTES = 1 << 20


@dataclass
class _Followed:
    """One log file, up to what was printed of it."""

    path: Path
    is_wanted: Callable[[str], bool]
    offset: int = 0
    rest: bytes = b""  # an unfinished line

    def skip_to_last(self, lines: int) -> list[str]:
        """Read all of the file, and return its last wanted lines."""
        found: deque[str] = deque(maxlen=lines)
        while new := self.new_lines():
            found.extend(new)
        return list(found)

    def new_lines(self) -> list[str]:
        """Return the wanted lines that were written since the last call, one block at most.

        An unfinished line is kept until its end is there. A file that has become shorter is read
        from its beginning.
        """
        found: list[str] = []
        while not found:
            content = self._read()
            if not content:
                break
            *lines, self.rest = (self.rest + content).split(b"\n")
            texts = (line.decode("utf-8", "replace") for line in lines)
            found = list(filter(self.is_wanted, texts))
        return found

    def _read(self) -> bytes:
        try:
            with open_regular(self.path) as file:
                size = file.seek(0, 2)
                if size < self.offset:
                    self.offset, self.rest = 0, b""
                file.seek(self.offset)
                content: bytes = file.read(BLOCK_BYTES)
        except FileNotFoundError:
            return b""
        self.offset += len(content)
        return content

    def unfinished(self) -> list[str]:
        """Return the last line without an end, if it is wanted. Call it after the run has ended."""
        text, self.rest = self.rest.decode("utf-8", "replace"), b""
        return [text] if text and self.is_wanted(text) else []


@dataclass
class LogFollower:
    """The logs of some runs of a grid."""

    folder: GridFolder
    runs: Sequence[RunFolder]
    wanted: Wanted
    has_queue: Callable[[], bool]
    """Whether a queue on this machine runs the grid. It may start runs that are not running."""
    _files: dict[Path, _Followed] = field(default_factory=dict)
    _printed: Path | None = None
    _reasons: dict[str, str] = field(default_factory=dict)

    def follow(self, lines: int) -> dict[str, RunStatus]:
        """Print the last lines of each log, then what is added, until all runs have ended.

        Args:
            lines: of each log that exists at the start. Later logs are printed whole.

        Returns:
            Run id -> its last status.

        Raises:
            ConfigError: a run has no such attempt or rank.
        """
        is_first = True
        while True:
            # Before the logs, so that the last output of a run that has ended is read.
            statuses, moving = self._look()
            self._print_reasons(statuses)
            until_s = time.monotonic() + STATUS_S
            while True:
                self._print_new(lines if is_first else None)
                is_first = False
                if not moving or time.monotonic() >= until_s:
                    break
                time.sleep(READ_S)
            if not moving:
                for file in self._files.values():
                    self._print(file.path, file.unfinished())
                return statuses

    def _look(self) -> tuple[dict[str, RunStatus], bool]:
        """Return the status of each run, and whether any may still write."""
        queue_lives = self.has_queue()
        with one_look():
            resolver = observe(self.folder)
            statuses = {run.run_id: resolver(run) for run in self.runs}
        moving = [run for run in self.runs if self._moves(run, statuses[run.run_id], queue_lives)]
        return statuses, bool(moving)

    def _moves(self, run: RunFolder, status: RunStatus, queue_lives: bool) -> bool:
        if status.state is RunState.DONE:
            return False
        if self.wanted.attempt:
            number = self.wanted.attempt
            is_over = read_attempt(run, number).end_unix_s is not None
            if is_over or newest_attempt(str(run.path)) > number:
                return False
        if status.state in (RunState.QUEUED, RunState.RUNNING):
            return True
        if status.state is RunState.UNKNOWN:
            return bool(status.job_id)  # Slurm's next answer may list the job
        return status.state is not RunState.FAILED and queue_lives

    def _print_reasons(self, statuses: dict[str, RunStatus]) -> None:
        """Print why a run is not running, once, to stderr."""
        for run_id, status in statuses.items():
            text = ": ".join(filter(None, [status.state.value, status.reason]))
            if self._reasons.get(run_id) == text:
                continue
            if status.state is not RunState.RUNNING or run_id in self._reasons:
                sys.stdout.flush()
                print(f"-- {run_id}: {text}", file=sys.stderr, flush=True)
            self._reasons[run_id] = text

    def _print_new(self, last: int | None) -> None:
        """Print what is new in each log. Of the first logs print the last lines."""
        for run in self.runs:
            for path in log_files(self.folder, run, self.wanted):
                if path in self._files:
                    continue
                followed = _Followed(path, line_filter(run, self.wanted))
                self._files[path] = followed
                if last is not None:
                    self._print(path, followed.skip_to_last(last))
        for followed in self._files.values():  # an earlier attempt may still write its last lines
            while new := followed.new_lines():
                self._print(followed.path, new)

    def _print(self, path: Path, lines: list[str]) -> None:
        if not lines:
            return
        if path != self._printed:
            print(f"==> {path}")
            self._printed = path
        print("\n".join(lines), flush=True)
