"""Stop requests: signal handlers set a flag, and ranks exchange flags at step boundaries.

A rank sends its flags at the end of a boundary and reads those of all ranks at the next one. So no
rank waits for another, and all of them act on the same flags at the same boundary.
"""

import signal
from types import FrameType

from furnace_hpc.engine.ranks.distributed import PendingMax, Processes
from furnace_hpc.host.lifecycle import STOP_SIGNALS


class Stopped(Exception):
    """A rank has received a stop signal during an evaluation. The message is the signal's name."""


class StopRequest:
    """Set by TERM, USR1, USR2, HUP or Ctrl-C on any rank."""

    def __init__(self) -> None:
        self._signal = 0
        self._sent: PendingMax | None = None

    def install(self) -> None:
        """Handle the stop signals and unblock them. Signals sent during start-up arrive now."""
        # Under a queue SIGINT stays blocked: the launcher translates it.
        for number in (*STOP_SIGNALS, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def send(self, processes: Processes, busy: int = 0) -> None:
        """Collective. Begin to send this rank's flags to all ranks. It does not wait for them.

        Args:
            processes: the ranks.
            busy: whether this rank's thread still works on a checkpoint. Call `send` only after
                the last change of that.
        """
        self.settle()
        self._sent = processes.begin_all_reduce_max(self._signal, busy)

    def receive(self, processes: Processes, busy: int = 0) -> tuple[str | None, int]:
        """Collective. Return the stop signal and the largest `busy` of all ranks.

        They are those of the last `send`. If there was none, the ranks exchange them now. A single
        rank has its flags of now. The signal is a name, or None if no rank has received one.
        """
        if self._sent is None or processes.world_size == 1:
            self.send(processes, busy)
        assert self._sent is not None
        number, busiest = self._sent.wait()
        self._sent = None
        name = signal.Signals(int(number)).name if number else None
        return name, int(busiest)

    def settle(self) -> None:
        """Collective. Wait for what was sent and not received. It is not needed any more."""
        if self._sent is not None:
            self._sent.wait()
        self._sent = None

    def check(self, processes: Processes) -> None:
        """Collective. Raise Stopped if any rank had received a stop signal at the last check."""
        name, _ = self.receive(processes)
        if name:
            raise Stopped(name)
        self.send(processes)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
