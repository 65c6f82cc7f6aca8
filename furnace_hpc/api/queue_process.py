"""The process of a queue that `start_queue` has started: run it, and answer when it starts.

From then on its output goes to `queue.log` in the folder of the submission. At the end it sends the
notification, and mirrors the runs to trackers.
"""

import os
import pickle
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.launch.grids.background import LOG, STOPPED, Answer
from furnace_hpc.launch.grids.messages import collected, stop_collecting
from furnace_hpc.launch.grids.options import Options
from furnace_hpc.launch.grids.submit_grid import Hooks, submit_grid
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.runs.folder import explain
from furnace_hpc.runs.journal import Submission


def main() -> None:
    """Read the options from stdin, run the queue, and answer on stdout when it starts."""
    options, rows = pickle.load(sys.stdin.buffer)
    pipe = os.fdopen(os.dup(1), "wb")
    _redirect(Path(os.devnull), 0, 1)
    try:
        _run(options, rows, pipe)
    except (ConfigError, OSError) as error:
        if isinstance(error, OSError):
            error = explain(error, "the queue could not continue")
        _report(pipe, str(error), isinstance(error, UnavailableError))
    except Exception:
        _report(pipe, traceback.format_exc())


def _run(options: Options, rows: list[GridRow], pipe: BinaryIO) -> None:
    with collected() as lines:

        def starts(submission: Submission, plan: Plan) -> None:
            if pipe.closed:  # a later stage of a tuned grid
                return
            log = submission.path / LOG
            _redirect(log, 1, 2)
            _send(pipe, Answer(plan, tuple(lines), log))
            stop_collecting()

        outcome = submit_grid(options, rows, Hooks(queue_starts=starts))
    if not pipe.closed:
        _send(pipe, Answer(outcome.plan, tuple(lines)))
    if outcome.is_stopped:
        sys.exit(STOPPED)
    from furnace_hpc.api.ending import after_queue

    after_queue(outcome.plan)


def _report(pipe: BinaryIO, problem: str, is_unavailable: bool = False) -> None:
    """Send an error to the caller, or write it to the log if the queue has started. Then exit."""
    if pipe.closed:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    else:
        _send(pipe, Answer(error=problem, is_unavailable=is_unavailable))
    sys.exit(1)


def _send(pipe: BinaryIO, answer: Answer) -> None:
    with suppress(BrokenPipeError), pipe:  # the caller may be gone
        pipe.write(pickle.dumps(answer))


def _redirect(path: Path, *descriptors: int) -> None:
    """Let these descriptors read or write a file."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in descriptors:
        os.dup2(file, descriptor)
    os.close(file)


if __name__ == "__main__":
    main()
