"""Stop requests: signal handlers set a flag, and ranks exchange flags at step boundaries."""

import signal
from types import FrameType

from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.host.lifecycle import STOP_SIGNALS


class Stopped(Exception):
    """A rank has received a stop signal during an evaluation. The message is the signal's name."""


class StopRequest:
    """Set by TERM, USR1, USR2, HUP or Ctrl-C on any rank."""

    def __init__(self) -> None:
        self._signal = 0

    def install(self) -> None:
        """Handle the stop signals and unblock them. Signals sent during start-up arrive now."""
        # Under a queue SIGINT stays blocked: the launcher translates it.
        for number in (*STOP_SIGNALS, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def exchange(self, processes: Processes, busy: int) -> tuple[str | None, int]:
        """Collective. Return the stop signal and the largest `busy` of all ranks.

        The signal is a name, or None if no rank has received one. All ranks get the same answer, so
        all leave at the same step. One all-reduce carries both values.
        """
        number, busiest = processes.all_reduce_max(self._signal, busy)
        name = signal.Signals(int(number)).name if number else None
        return name, int(busiest)

    def check(self, processes: Processes) -> None:
        """Collective. Raise Stopped if any rank has received a stop signal."""
        name, _ = self.exchange(processes, busy=0)
        if name:
            raise Stopped(name)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
