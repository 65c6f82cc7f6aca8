"""A rank's report on its state and its end. Exit codes would not tell causes apart.

All ranks of a node append to one file: a file per rank would be thousands on a shared file system.
"""

import json
import os
import socket
import time
import traceback
from types import TracebackType

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.text_safety import masked
from furnace_hpc.host import end_reasons
from furnace_hpc.host.durable_files import append_line
from furnace_hpc.runs.folder import TRANSIENT_ERRNOS, RunFolder


class RankVerdict:
    """A context that writes `entered` at its start, and the kind of exception at its end."""

    def __init__(self, folder: RunFolder, attempt: int, rank: int, node: int = 0) -> None:
        self._path, self.rank = folder.verdict(attempt, node), rank
        self._log = folder.log_name(attempt, node)
        self._step = 0
        self._memory = ""
        self._facts: dict[str, int] = {}

    def __enter__(self) -> "RankVerdict":
        self._write("entered")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        verdict = verdict_of(error)
        message = traceback.format_exception_only(error)[-1].strip()
        if verdict == "oom" and self._memory:  # torch's message may be longer than the limit
            message = f"{message[: 480 - len(self._memory)]}; {self._memory}"
        if verdict == "nonfinite":
            message = f"step {self._step}: {message}"
        self._write(verdict, message, **self._facts)

    def note_oom(self, memory: str = "", **facts: int) -> None:
        """Note what the report of the end adds if the rank is out of memory."""
        self._memory = memory or self._memory
        self._facts |= facts

    def at(self, step: int) -> None:
        """Note the last finished step."""
        self._step = step

    def done(self) -> None:
        """Report that the result is written."""
        self._write("done")

    def stopping(self, signal_name: str) -> None:
        """Report that all ranks stop and save now. If saving takes too long, this report stays."""
        message = f"stopped by {signal_name} before everything was saved"
        self._write("stopping", message, signal=signal_name)

    def stopped(self, signal_name: str) -> None:
        """Report that a checkpoint is saved and the rank ends."""
        self._write("stopped", f"stopped by {signal_name}", signal=signal_name)

    def hang(self, where: str, seconds: float, frozen: bool = False) -> None:
        """Report that the rank made no progress for some seconds.

        Args:
            where: what the rank did.
            seconds: the time without progress.
            frozen: the process did not run at all, so the other ranks waited for it.
        """
        problem = "was frozen" if frozen else "made no progress"
        message = f"rank {self.rank} {problem} for {seconds:g} s in {where}"
        message += f"; the stacks of its threads are in {self._log}"
        self._write("hang", message, frozen=frozen)

    def _write(self, verdict: str, error: str = "", **more: str | int) -> None:
        content = {
            "rank": self.rank,
            "verdict": verdict,
            "step": self._step,
            "error": masked(error)[:500],
            "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "unix_s": time.time(),
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, json.dumps(content | more))
        except OSError as error:
            # On a failing disk the last verdict stays. The host takes it for a killed rank, so the
            # run is retried.
            if error.errno not in TRANSIENT_ERRNOS:
                raise


def verdict_of(error: BaseException) -> str:
    """The verdict for an exception: nonfinite, oom, io_error, gpu, hang, peer_lost or crash."""
    if isinstance(error, FloatingPointError):
        return "nonfinite"
    names = {kind.__name__ for kind in type(error).__mro__}  # by name: nothing here imports torch
    if names & {"OutOfMemoryError", "MemoryError"}:
        return "oom"
    if isinstance(error, ConfigError):  # may quote a message
        return "crash"
    known = end_reasons.verdict_of_message(str(error))
    if known != "oom" and isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
        return "io_error"
    if not known and names & set(end_reasons.PEER_ERRORS):
        return "peer_lost"
    return known or "crash"
