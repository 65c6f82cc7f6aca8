"""The watchdog of one rank: a rank that does not move is a hang, which is told, written down and ended.

Its peers wait for it in a collective, do not move either, and end by their own watchdogs; the launcher ends whoever is
then left, a stopped process too.
"""

import faulthandler
import os
import threading
import time
from types import TracebackType

from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.lifecycle import EXIT_HANG, START_S
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempt
from furnace_hpc.runs.records.verdict import Verdict

LOG = 2  # the descriptor of the error stream, which is the rank's log
NET_S = 2.5  # the net below the watchdog fires this much later
LOOK_S = 1.0  # at most so long between two looks; less than NET_S, or the net could fire too early


class Watchdog:
    """A context. Call `heartbeat` at every step, every batch of an evaluation and every save.

    A thread in Python gives the good account. Where the interpreter is stuck (a library that holds its lock), the C
    thread of `faulthandler` writes the stacks and exits with 1; decide finds its line in the log.
    A rank that was stopped from outside (SIGSTOP, or a job that Slurm suspends) for longer than that is a hang too.
    """

    def __init__(self, timeout_s: float, verdict: Verdict, start_s: float = START_S) -> None:
        self.timeout_s, self._verdict = timeout_s, verdict
        # one name: replaced in one go
        self._now = (time.monotonic(), max(start_s, timeout_s), "the start")
        self._ended = threading.Event()

    @classmethod
    def of_run(cls, folder: RunFolder, attempt: int, verdict: Verdict) -> "Watchdog":
        """With the limit that the run's spec gives, or the attempt's overrides."""
        spec = RunSpec.model_validate_json(read_regular(folder.spec))
        overrides = read_attempt(folder, attempt).overrides
        return cls(float(overrides.get("hang_timeout_s", spec.config.hang_timeout_s)), verdict)

    def __enter__(self) -> "Watchdog":
        self._arm()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()

    def heartbeat(self, where: str) -> None:
        """This rank goes on; `where` says what it does from now on."""
        self._now = (time.monotonic(), self.timeout_s, where)

    def _watch(self) -> None:
        look_s, looked_s = min(LOOK_S, self.timeout_s / 10), time.monotonic()
        while not self._ended.wait(min(look_s, max(0.0, self._left_s()))):
            if self._left_s() <= 0:
                # Slurm lets a stopped process go on before it kills it: then this thread has not
                # looked either.
                self._end(frozen=time.monotonic() - looked_s > self.timeout_s / 2)
            self._arm()
            looked_s = time.monotonic()

    def _left_s(self) -> float:
        since, allowed_s, _ = self._now
        return since + allowed_s - time.monotonic()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(max(0.0, self._left_s()) + NET_S, exit=True, file=LOG)
        if self._ended.is_set():  # the context has ended meanwhile
            faulthandler.cancel_dump_traceback_later()

    def _end(self, frozen: bool) -> None:
        _, allowed_s, where = self._now
        if self._ended.is_set():
            return
        print(
            f"HANG: this rank did not move for {allowed_s:g} s in {where}; the stacks of its threads:",
            flush=True,
        )
        faulthandler.dump_traceback(file=LOG, all_threads=True)
        self._verdict.hang(where, allowed_s, frozen)
        os._exit(EXIT_HANG)
