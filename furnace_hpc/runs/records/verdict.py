"""A rank's own word on how its attempt goes and ends: what the host's `decide` reads, since exit codes say little."""

import os
import socket
import time
import traceback
from types import TracebackType

from furnace_hpc.config.parsing.text_safety import masked
from furnace_hpc.runs.folder import TRANSIENT_ERRNOS, RunFolder, write_json

PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
)
NO_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
)


class Verdict:
    """A context: `entered` at its start; at its end one of `done`, `stopped`, `hang`, or a word for an exception."""

    def __init__(self, folder: RunFolder, attempt: int, rank: int) -> None:
        self._path, self._rank = folder.verdict(attempt, rank), rank
        self._log = f"{folder.logs.name}/{folder.log(attempt, rank).name}"
        self._step = 0

    def __enter__(self) -> "Verdict":
        self._write("entered")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            word, line = word_of(error), traceback.format_exception_only(error)[-1].strip()
            self._write(word, f"step {self._step}: {line}" if word == "nonfinite" else line)

    def at(self, step: int) -> None:
        """Note the last finished step."""
        self._step = step

    def done(self) -> None:
        """The result is written."""
        self._write("done")

    def stopping(self, signal_name: str) -> None:
        """The ranks have agreed to leave, and save now: if that takes too long, this is the last word."""
        self._write(
            "stopping",
            f"told to stop by {signal_name}, and ended before all was saved",
            signal=signal_name,
        )

    def stopped(self, signal_name: str) -> None:
        """A checkpoint is saved and the rank leaves."""
        self._write("stopped", f"stopped by {signal_name}", signal=signal_name)

    def hang(self, where: str, seconds: float, frozen: bool = False) -> None:
        """The rank did not move for so long; `frozen`: it did not run at all, so that its peers waited for it."""
        stacks = f"the stacks of its threads are in {self._log}"
        what = "was frozen" if frozen else "did not move"
        self._write(
            "hang",
            f"rank {self._rank} {what} for {seconds:g} s in {where}; {stacks}",
            frozen=frozen,
        )

    def _write(self, verdict: str, error: str = "", **more: str | bool) -> None:
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        word = {
            "verdict": verdict,
            "step": self._step,
            "error": masked(error)[:500],
            "host": host,
            "unix_s": time.time(),
        }
        try:
            write_json(self._path, word | more)
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS:
                raise
            # Nothing can be written down now. Its last word stays, which reads as killed: the run
            # comes back.


def word_of(error: BaseException) -> str:
    """The reason of an exception: crash, or one that the same run would not escape, or a peer's."""
    if isinstance(error, FloatingPointError):
        return "nonfinite"
    names = {kind.__name__ for kind in type(error).__mro__}  # by name: nothing here imports torch
    if names & {"OutOfMemoryError", "MemoryError"} or any(
        words in str(error) for words in NO_MEMORY
    ):
        return "oom"
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
        return "io_error"
    return "peer_lost" if any(words in str(error) for words in PEER_LOST) else "crash"
