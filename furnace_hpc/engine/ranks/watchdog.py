"""The watchdog of one rank: detect a hang, dump the stacks, record it and kill the rank.

The other ranks wait for the hung one in a collective. They hang too, and their own watchdogs kill
them. The launcher kills the ranks that are left, among them stopped processes.
"""

import faulthandler
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.engine.ranks.flight_recorder import DUMP_S, dump
from furnace_hpc.host.lifecycle import EXIT_HANG, START_S
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import read_attempt
from furnace_hpc.runs.records.verdict import RankVerdict

STDERR = 2  # the descriptor; a rank's stderr is its log
FALLBACK_S = 2.5  # faulthandler fires this much later than the watchdog's thread
# The longest time between two checks. It must be below FALLBACK_S, or faulthandler fires too early.
CHECK_S = 1.0


class Watchdog:
    """A context. Call `heartbeat` at every step, every batch of an evaluation and every save.

    A Python thread detects most hangs and records the details. If a library holds the interpreter
    lock, that thread is stuck too. Then the C thread of `faulthandler` writes the stacks and exits
    with 1. `decide` finds its line in the log. A rank that was stopped from outside for longer than
    the limit counts as hung: SIGSTOP, or a job that Slurm suspends.
    """

    def __init__(
        self,
        timeout_s: float,
        verdict: RankVerdict,
        start_s: float = START_S,
        collectives: Path | None = None,
    ) -> None:
        self.timeout_s, self._verdict = timeout_s, verdict
        self._collectives = collectives
        self._limit_s = max(start_s, timeout_s)
        # One tuple, so that another thread never reads a mixture of old and new values.
        self._last = (time.monotonic(), self._limit_s, "the start")
        self._ended = threading.Event()

    @classmethod
    def for_run(cls, folder: RunFolder, attempt: int, verdict: RankVerdict) -> "Watchdog":
        """A watchdog with the limit of the run's spec, or of the attempt's overrides."""
        spec = RunSpec.model_validate_json(read_regular(folder.spec))
        overrides = read_attempt(folder, attempt).overrides
        timeout_s = float(overrides.get("hang_timeout_s", spec.config.hang_timeout_s))
        collectives = Path(f"{folder.collectives(attempt)}{verdict.rank}")
        return cls(timeout_s, verdict, collectives=collectives)

    def __enter__(self) -> "Watchdog":
        self._arm_fallback()
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

    def heartbeat(self, activity: str) -> None:
        """Report that this rank makes progress. `activity` names what it does from now on."""
        self._last = (time.monotonic(), self._limit_s, activity)

    def end_start(self) -> None:
        """Use `timeout_s` from the next heartbeat on. Call it after the first step.

        Until then the limit is `start_s`. The start includes imports, staging, the first load of a
        checkpoint and the first collectives, which can take many minutes on a cold file system.
        """
        self._limit_s = self.timeout_s

    def _watch(self) -> None:
        check_s, checked_s = min(CHECK_S, self.timeout_s / 10), time.monotonic()
        while not self._ended.wait(min(check_s, max(0.0, self._left_s()))):
            if self._left_s() <= 0:
                # Slurm continues a stopped process before it kills it. Then this thread was stopped
                # too, so its last check is old.
                self._kill_rank(frozen=time.monotonic() - checked_s > self.timeout_s / 2)
            self._arm_fallback()
            checked_s = time.monotonic()

    def _left_s(self) -> float:
        since, allowed_s, _ = self._last
        return since + allowed_s - time.monotonic()

    def _arm_fallback(self) -> None:
        delay_s = max(0.0, self._left_s()) + FALLBACK_S
        faulthandler.dump_traceback_later(delay_s, exit=True, file=STDERR)
        if self._ended.is_set():  # the context has ended in the meantime
            faulthandler.cancel_dump_traceback_later()

    def _kill_rank(self, frozen: bool) -> None:
        _, allowed_s, activity = self._last
        if self._ended.is_set():
            return
        title = f"HANG: no progress for {allowed_s:g} s in {activity}. Stacks of all threads:\n"
        with suppress(OSError):
            _write_stacks(f"rank {self._verdict.rank}: {title}")
        self._verdict.hang(activity, allowed_s, frozen)
        if self._collectives:
            # the fallback would end the process while it writes
            faulthandler.dump_traceback_later(2 * DUMP_S, exit=True, file=STDERR)
            if dump(self._collectives):
                print(f"the last collectives are in {self._collectives}", flush=True)
        os._exit(EXIT_HANG)


def _write_stacks(title: str) -> None:
    """Write the stacks of all threads to the log at once. Ranks of a node share the log."""
    descriptor = os.memfd_create("stacks")
    faulthandler.dump_traceback(file=descriptor, all_threads=True)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, "rb") as stacks:
        os.write(STDERR, title.encode() + stacks.read())
