"""Stop a grid's jobs: `python -m furnace_hpc.cancel --grid NAME`. What they did is kept, and submit goes on from it."""

import json
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.cluster import scheduler
from furnace_hpc.cluster.journal import settle_doubts, submissions
from furnace_hpc.cluster.observe import Observer, observe
from furnace_hpc.cluster.states import Phase, meaning
from furnace_hpc.runs import host
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.spec.errors import ConfigError, nearest
from furnace_hpc.spec.files import runs_root


def main(
    grid: Annotated[str, typer.Option(help="name of a submitted grid")],
    variant: Annotated[list[str] | None, typer.Option(help="only this row's runs; repeatable")] = None,
    runs_dir: Annotated[
        Path | None, typer.Option("--runs-root", help="where runs lie [$FURNACE_RUNS or ./runs]")
    ] = None,
) -> None:
    """Stop a grid's jobs, waiting ones too: one scancel, or an orderly stop of the queue on this machine.

    Ranks that get the time (KillWait) save a checkpoint. The next submit goes on from there.
    """
    folder = GridFolder(runs_root(runs_dir) / grid)
    if not folder.all_submissions():
        raise ConfigError(f"grid {grid!r} has no submissions in {folder.path}: is --runs-root the one it was given?")
    if _stop_local_queue(folder, variant or []):
        return
    if not any(sent for submission in submissions(folder) for sent in submission.sent()):
        print("nothing is running or waiting")
        return
    settle_doubts(folder)
    jobs = _live_jobs(folder, observe(folder, must=True), variant or [])
    if not jobs:
        print("nothing is running or waiting")
        return
    for submission in submissions(folder):
        submission.note("cancelled", job_ids=jobs if variant else [])
    scheduler.cancel(jobs)
    print(f"cancelled {len(jobs):,} jobs; submit goes on from what they have saved")


def _live_jobs(folder: GridFolder, observer: Observer, variants: list[str]) -> list[str]:
    """Ids of the jobs to cancel: follow-up jobs first, so that none starts in between."""
    live = {j for j, job in observer.evidence.queued.items() if meaning(job.word).phase is not Phase.ENDED}
    runs = {place.job_id: run_id for run_id, place in observer.places.items()}
    if not variants:
        return sorted(live - runs.keys()) + sorted(live & runs.keys())
    of_run = {row["run_id"]: _variant(row["run_id"]) for s in submissions(folder) for row in s.rows}
    for name in variants:
        if name not in of_run.values():
            raise ConfigError(f"unknown variant {name!r}; {nearest(name, of_run.values())}")
    return sorted(job_id for job_id in live & runs.keys() if of_run[runs[job_id]] in variants)


def _variant(run_id: str) -> str:
    return run_id.rsplit("-", 2)[0]


def _stop_local_queue(folder: GridFolder, variants: list[str]) -> bool:
    """Whether a queue on this machine runs the grid; it is told to stop."""
    try:
        who = json.loads(folder.lock.read_text())
    except (FileNotFoundError, ValueError):
        return False
    if not host.is_alive(who):
        return False
    if variants:
        raise ConfigError("a queue on this machine can only be stopped whole: leave --variant away")
    os.kill(who["pid"], signal.SIGTERM)
    print(f"told the queue of {host.describe(who)} to stop; its runs save a checkpoint and leave")
    return True


if __name__ == "__main__":
    run_command(main)
