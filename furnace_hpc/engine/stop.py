"""Stopping: signal handlers that only set a flag, and ranks that agree on it at step boundaries."""

import signal
from collections.abc import Callable
from types import FrameType

from furnace_hpc.engine.distributed import Processes
from furnace_hpc.host.lifecycle import STOP_SIGNALS


class Stopped(Exception):
    """The ranks have agreed to stop in the middle of something; says by which signal."""


class StopRequest:
    """Set by TERM, USR1, USR2, HUP or Ctrl-C on any rank."""

    def __init__(self) -> None:
        self._signal = 0

    def install(self) -> None:
        """Take over the stop signals, and unblock them: what came during start-up arrives now."""
        # under a queue SIGINT stays blocked: its launcher translates it
        for number in (*STOP_SIGNALS, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def agreed(self, processes: Processes, busy: int) -> tuple[str | None, int]:
        """Collective. The signal's name when any rank has had one: then all leave at the same step.

        And, in the same message, of a number the largest of all ranks'.
        """
        number, busiest = processes.all_reduce_max(self._signal, busy)
        return signal.Signals(int(number)).name if number else None, int(busiest)

    def checked(
        self, processes: Processes, heartbeat: Callable[[str], None]
    ) -> Callable[[str], None]:
        """A `heartbeat` that is called by all ranks alike, and raises Stopped when any of them is told to stop."""

        def heartbeat_and_check(where: str) -> None:
            heartbeat(where)
            if reason := self.agreed(processes, 0)[0]:
                raise Stopped(reason)

        return heartbeat_and_check

    def _set(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
