"""`furnace submit`, killed at one point: python crash.py POINT [arguments of submit].

POINT is before:N or after:N, for the N-th line of the journal. Or it is snapshot, name, rows or
payload, for the moment before that is written. `name` is the final name of the snapshot.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from furnace_hpc.launch import slurm_array, submission
from furnace_hpc.runs import snapshot
from furnace_hpc.runs.journal import Submission
from furnace_hpc.submit import main

POINTS = (
    "snapshot",
    "name",
    "rows",
    "payload",
    *(f"{when}:{n}" for n in (1, 2, 3, 4) for when in ("before", "after")),
)


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(point: str) -> None:
    """Arrange the death."""
    if point == "snapshot":
        submission.copy_code = die
    elif point == "name":
        snapshot.CodeCopy.complete = die
    elif point == "rows":
        write = submission.write_atomically
        submission.write_atomically = lambda path, text: (
            die() if path.name == "rows.jsonl" else write(path, text)
        )
    elif point == "payload":
        slurm_array.DelayedSubmission = die
    else:
        when, _, number = point.partition(":")
        Submission.note = _counted(Submission.note, when, int(number))


def _counted(note: Callable[..., None], when: str, number: int) -> Callable[..., None]:
    calls = 0

    def counted(self: Submission, event: str, **facts: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            die()
        note(self, event, **facts)
        if calls == number:
            die()

    return counted


if __name__ == "__main__":
    from furnace_hpc.cli import run_command

    killed_at(sys.argv[1])
    run_command(main, sys.argv[2:])
