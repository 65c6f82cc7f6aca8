"""A background task of one rank, with retries for transient file system errors."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from furnace_hpc.engine.checkpoint.io_problem import IoProblem, try_io

MAX_PAUSE_S = 30.0


class BackgroundTask(threading.Thread):
    """A thread that starts at once. When it has ended, `problem` is that of the last try."""

    def __init__(self, work: Callable[[], None], max_tries: int, max_pause_s: float) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.problem: IoProblem | None = None
        """None if the last try succeeded."""
        self.took_s = 0.0
        """Duration of the last try."""
        self.tries, self.max_tries = 0, max_tries
        self.max_pause_s = min(max_pause_s, MAX_PAUSE_S)
        self._work, self._no_more_tries = work, threading.Event()
        self.start()

    def run(self) -> None:
        """Try until the work succeeds, fails permanently, or has been tried `max_tries` times."""
        while True:
            self.tries += 1
            started_s = time.monotonic()
            self.problem = try_io(self._work)
            self.took_s = time.monotonic() - started_s
            if not self.problem or not self.problem.transient or self.tries >= self.max_tries:
                return
            pause_s = min(2.0 ** (self.tries - 1), self.max_pause_s)
            with suppress(OSError):  # the log may be on the same disk
                print(
                    f"checkpoint write failed, retry in {pause_s:g} s: {self.problem.message}",
                    flush=True,
                )
            self._no_more_tries.wait(pause_s)

    def stop_retrying(self) -> None:
        """End after the current try."""
        self.max_tries = 0
        self._no_more_tries.set()
