"""What one rank does in a thread while training goes on; tried again where the file system may get over what it has."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from furnace_hpc.engine.checkpoint.tensor_files import Problem, problem_of


class BackgroundTask(threading.Thread):
    """Begins at once. `problem` is what the last try came to; None: it worked."""

    def __init__(self, work: Callable[[], None], tries: int, longest_pause_s: float) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.problem: Problem | None = None
        self.took_s = 0.0
        """Of the last try."""
        self.tries, self.most_tries, self.longest_pause_s = 0, tries, min(longest_pause_s, 30.0)
        self._work, self._enough = work, threading.Event()
        self.start()

    def run(self) -> None:
        """Try until it works, cannot work, or has been tried often enough."""
        while True:
            self.tries += 1
            began_s = time.monotonic()
            self.problem = problem_of(self._work)
            self.took_s = time.monotonic() - began_s
            if not self.problem or not self.problem[0] or self.tries >= self.most_tries:
                return
            pause_s = min(2.0 ** (self.tries - 1), self.longest_pause_s)
            with suppress(OSError):  # the log may be on the same disk
                print(
                    f"a checkpoint cannot be written now, again in {pause_s:g} s: {self.problem[1]}",
                    flush=True,
                )
            self._enough.wait(pause_s)

    def no_more_tries(self) -> None:
        """End after the try that is under way."""
        self.most_tries = 0
        self._enough.set()
