"""A rank's own word on how its attempt goes and ends: what the host's `decide` reads, since exit codes say little."""

import time
import traceback
from types import TracebackType

from furnace_hpc.runs.folder import RunFolder, write_json

PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


class Verdict:
    """A context: `entered` at its start; `done`, `stopped`, `crash` or `peer_lost` at its end."""

    def __init__(self, folder: RunFolder, attempt: int, rank: int) -> None:
        self._path = folder.verdict(attempt, rank)
        self._step = 0

    def __enter__(self) -> "Verdict":
        self._write("entered")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            line = traceback.format_exception_only(error)[-1].strip()
            self._write("peer_lost" if any(words in str(error) for words in PEER_LOST) else "crash", line)

    def at(self, step: int) -> None:
        """Note the last finished step."""
        self._step = step

    def done(self) -> None:
        """The result is written."""
        self._write("done")

    def stopped(self, signal_name: str) -> None:
        """A checkpoint is saved and the rank leaves."""
        self._write("stopped", f"stopped by {signal_name}")

    def _write(self, verdict: str, error: str = "") -> None:
        write_json(self._path, {"verdict": verdict, "step": self._step, "error": error[:500], "unix_s": time.time()})
