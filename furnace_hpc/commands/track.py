"""Mirror the runs of a grid to a tracker: `furnace track --grid NAME --to TRACKER [--follow]`."""

import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.cluster import TrackerTarget
from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.console.options import RunsRoot, SubmittedGrid
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState
from furnace_hpc.runs.submitted import find_submitted
from furnace_hpc.trackers.mirror import mirror
from furnace_hpc.trackers.mirror_all import describe, reports_of

if TYPE_CHECKING:
    from furnace_hpc.monitor.grid_status import StatusLine

MAX_BUSY = 0.1  # share of the time that --follow spends on reading and sending


def main(
    grid: SubmittedGrid,
    to: Annotated[
        Literal["tensorboard", "wandb", "mlflow", "trackio"], typer.Option(help="the tracker")
    ],
    at: Annotated[
        str | None,
        typer.Option(
            help="tensorboard, trackio: folder; mlflow: address of the server "
            "[$MLFLOW_TRACKING_URI]; wandb: address of your own server"
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="wandb: project or entity/project; trackio: project; mlflow: experiment [GRID]"
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="wandb: only write folders for `wandb sync`")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="continue until all runs have ended; Ctrl-C stops it")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", min=1, help="with --follow: seconds between two passes")
    ] = 30.0,
    report: Annotated[
        str,
        typer.Option(help="path or address of the report [that of the run's table in results/]"),
    ] = "",
    again: Annotated[
        bool,
        typer.Option("--again", help="replace the tracker's records of all runs; not wandb online"),
    ] = False,
    runs_dir: RunsRoot = None,
) -> None:
    """Send curves, config, tags, results and costs of a grid's runs to a tracker.

    Each call sends the records that are new since the last one. A run has the same name in the
    tracker as in the grid, even after requeues. The command only reads the files of the runs.
    Training does not wait for it.
    """
    folder = find_submitted(grid, runs_root(runs_dir))
    given = {"to": to, "at": at, "project": project, "offline": offline}
    target = validate(TrackerTarget, given, "track")
    # Handle SIGTERM like Ctrl-C, so that the position is stored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if follow:
            _follow(folder, target, report, again, every_s)
        else:
            print(describe(target, mirror(folder, target, report or reports_of(folder), again)))
    except KeyboardInterrupt:
        print("stopped. Run the same command to continue", file=sys.stderr)
        raise typer.Exit(130) from None


def _follow(
    folder: GridFolder, target: TrackerTarget, report: str, again: bool, every_s: float
) -> None:
    """Send new records until no run can change. Retry if the tracker does not answer."""
    from furnace_hpc.monitor.grid_status import continues, overview
    from furnace_hpc.monitor.local_queue import live_queue

    is_answering = True
    while True:
        started_s = time.monotonic()
        queue = live_queue(folder)
        lines, job_cache = overview(folder)  # before the pass, which then sends the last records
        can_change = bool(queue) or any(map(_can_change, lines)) or continues(folder, job_cache)
        try:
            done = mirror(folder, target, report or reports_of(folder), again)
            again = False
            if done.num_changed or not can_change:
                print(describe(target, done), flush=True)
            is_answering = True
        except UnavailableError as error:
            if not can_change:
                raise
            if is_answering:
                print(f"warning: {error}. Retrying", file=sys.stderr, flush=True)
            is_answering = False
        if not can_change:
            return
        took_s = time.monotonic() - started_s
        time.sleep(max(every_s - took_s, took_s / MAX_BUSY, 0.0))


def _can_change(line: "StatusLine") -> bool:
    """Whether a run can change without a command of the user."""
    state = line.status.state
    if state is RunState.UNKNOWN:
        return bool(line.status.job_id)
    return state in (RunState.QUEUED, RunState.RUNNING)


if __name__ == "__main__":
    run_command(main)
