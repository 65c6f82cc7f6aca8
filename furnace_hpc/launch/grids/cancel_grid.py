"""Stop the jobs of a grid, of some of its rows, or the queue on this machine that runs it."""

import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.trials import row_of
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.arrays import ranges
from furnace_hpc.launch.grids.messages import show_message
from furnace_hpc.launch.submission import grid_lock, recover_pending_submissions
from furnace_hpc.monitor.job_cache import expire_job_cache
from furnace_hpc.monitor.local_queue import read_holder
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.journal import SCOPE, Submission, submissions
from furnace_hpc.runs.manual_starts import manually_started
from furnace_hpc.slurm import client
from furnace_hpc.slurm.job_states import Phase, meaning

NOTHING = "nothing is running or waiting"


class Cancelled(NamedTuple):
    """What was stopped."""

    queue: str = ""  # the queue on this machine, in words
    jobs: Sequence[str] = ()  # ids
    asked: Sequence[str] = ()  # runs that end within jobs whose other runs continue

    def lines(self) -> list[str]:
        """Return one line for each kind of what was stopped."""
        if self.queue:
            return [f"asked the queue of {self.queue} to stop; its runs save a checkpoint and exit"]
        resumes = "the next submit resumes from saved checkpoints"
        lines = []
        if self.jobs:
            lines.append(f"cancelled {counted(len(self.jobs), 'job')}; {resumes}")
        if self.asked:
            lines.append(
                f"asked {counted(len(self.asked), 'run')} on shared nodes to save and stop, within "
                f"seconds; other runs of these jobs continue; {resumes}"
            )
        return lines or [NOTHING]


def cancel_grid(folder: GridFolder, variants: list[str]) -> Cancelled:
    """Stop all jobs of these rows, running and waiting, or the queue on this machine.

    Args:
        folder: a submitted grid.
        variants: rows. If empty, the whole grid.

    Raises:
        ConfigError: unknown row, a part of a local queue, or a queue on another machine.
        UnavailableError: Slurm does not answer.
    """
    runs = {row.run_id for submission in submissions(folder) for row in submission.rows}
    chosen = _choose(runs, variants)
    if queue := _stop_local_queue(folder, bool(variants)):
        return Cancelled(queue=queue)
    return _cancel(folder, chosen, whole=not variants)


def _choose(runs: set[str], variants: list[str]) -> set[str]:
    """Return the runs of these rows, or all runs if no row is given."""
    known = {_variant(run_id) for run_id in runs}
    for name in variants:
        if name not in known:
            raise ConfigError(f"unknown variant {name!r}; {nearest(name, known)}")
    return {run_id for run_id in runs if not variants or _variant(run_id) in variants}


def _cancel(folder: GridFolder, chosen: set[str], whole: bool) -> Cancelled:
    """Cancel the jobs of these runs.

    Jobs with several runs read the note in the journal (host/shared_node/). A follow-up job that
    runs now reads it too, or waits for the lock.
    """
    all_ = submissions(folder)
    with_calls = [one for one in all_ if one.sbatch_calls() or _shares_nodes(one)]
    # A follow-up job also reads the scope of a later submission that has no job of its own.
    with_scope = [one for one in all_ if (one.path / SCOPE).exists() and one not in with_calls]
    for submission in (*with_calls, *with_scope):
        try:
            submission.note("cancelled", runs=[] if whole else sorted(chosen))
        except OSError as error:  # such as a full disk: cancel the jobs all the same
            show_message(
                f"the journal could not be written ({error.strerror}): a follow-up job that is "
                f"running now may submit more"
            )
    if not with_calls and not manually_started(folder, all_):
        return Cancelled()
    with grid_lock(folder, patience_s=60):  # a follow-up job holds it for seconds
        recover_pending_submissions(folder)
        jobs, asked = _jobs_of(folder, chosen, whole)
        if jobs:
            client.cancel(named(jobs, whole))
            expire_job_cache(folder)
    return Cancelled(jobs=jobs, asked=asked)


def _shares_nodes(submission: Submission) -> bool:
    """Whether some of its runs share a node."""
    return any(row.attempt.runs_per_node > 1 for row in submission.rows)


def _jobs_of(folder: GridFolder, chosen: set[str], whole: bool) -> tuple[list[str], list[str]]:
    """Return the live jobs of these runs, and the runs whose live jobs have other runs too.

    For a whole grid the jobs include the follow-up jobs.
    """
    resolver = observe(folder, needs_answer=True)
    phases = {job_id: meaning(job.word).phase for job_id, job in resolver.job_cache.queued.items()}
    live = {job_id for job_id, phase in phases.items() if phase is not Phase.ENDED}
    runs_of: dict[str, set[str]] = {}
    for run_id, place in resolver.places.items():
        runs_of.setdefault(place.job_id, set()).add(run_id)
    known = sorted(live & runs_of.keys())
    if whole:
        # Follow-up jobs first, so that none starts in between.
        return sorted(live - runs_of.keys()) + known, []
    jobs, asked = list[str](), list[str]()
    for job_id in known:
        runs = sorted(runs_of[job_id] & chosen)
        shares_node = any(resolver.places[run_id].shares_node for run_id in runs)
        # A job on a shared node may have started runs of other jobs. It ends when it has no run.
        is_whole = phases[job_id] is Phase.WAITING and set(runs) == runs_of[job_id]
        if runs and (is_whole or not shares_node):
            jobs.append(job_id)
        else:
            asked += [run_id for run_id in runs if not folder.run(run_id).result.is_file()]
    return jobs, asked


def named(jobs: list[str], whole: bool) -> list[str]:
    """Return few names for jobs, since scancel sends one request for each name.

    A name is a whole array, or `12_[0-3,7]`.
    """
    arrays: dict[str, list[int]] = {}
    for job_id in jobs:
        array, element, index = job_id.partition("_")
        indices = arrays.setdefault(array, [])
        if element and not whole:
            indices.append(int(index))
    return [_name(array, indices) for array, indices in arrays.items()]


def _name(array: str, indices: list[int]) -> str:
    return f"{array}_[{ranges(indices)}]" if indices else array


def _variant(run_id: str) -> str:
    """Return the row of a run. The trials of a row belong to it."""
    return row_of(run_id.rsplit("-", 2)[0])


def _stop_local_queue(folder: GridFolder, part: bool) -> str:
    """Signal the queue on this machine that runs the grid, and describe it. Empty if none does.

    Raises:
        ConfigError: only a part is to be stopped, or the queue is on another machine.
    """
    holder = read_holder(folder)
    if not holder or holder.get("what") != "queue":
        return ""
    alive = lifecycle.is_alive(holder)
    if alive is False:
        return ""
    if alive is None:
        host = holder.get("host")
        raise ConfigError(f"a queue on {host} runs this grid: run `furnace cancel` there")
    if part:
        raise ConfigError("a queue on this machine can only be stopped whole: omit --variant")
    os.kill(holder["pid"], signal.SIGTERM)
    return lifecycle.describe(holder)
