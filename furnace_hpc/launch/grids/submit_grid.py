"""Submit a grid: check it, plan it under its lock, then start a Slurm array or a local queue."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Thread
from typing import NamedTuple

from furnace_hpc.config.grids.initial_weights import check_folders
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.parsing.lookup import find_shipped
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.launch.arrays import Array, ranges
from furnace_hpc.launch.batch_script import sbatch_flags
from furnace_hpc.launch.grids.messages import show_message
from furnace_hpc.launch.grids.options import Options
from furnace_hpc.launch.grids.plan_grid import make_plan_of
from furnace_hpc.launch.planning.dataset_checks import fingerprints
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.launch.planning.show_plan import check_shared
from furnace_hpc.launch.stalled import recover_stalled, unattended_trials
from furnace_hpc.launch.submission import (
    grid_lock,
    record,
    recover_pending_submissions,
    write_specs,
)
from furnace_hpc.monitor.run_status import StatusResolver, observe
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.submitted import grid_command
from furnace_hpc.runs.trust import check_place, keep_private, trust_group
from furnace_hpc.slurm.client import prefetch_site_limits, require_slurm


@dataclass(frozen=True)
class Hooks:
    """Functions that a submission calls. By default they do nothing."""

    show: Callable[[Plan], object] = lambda _: None  # each plan, before it is carried out
    confirm: Callable[[], object] = lambda: None  # before jobs are submitted. It may raise
    queue_starts: Callable[[Submission, Plan], object] = lambda *_: None  # on this machine


class Outcome(NamedTuple):
    """The result of a submission."""

    plan: Plan  # the last one, if a local queue has planned again
    is_stopped: bool = False  # whether a signal stopped the local queue


def submit_grid(options: Options, rows: list[GridRow], hooks: Hooks) -> Outcome:
    """Plan the chosen runs, and carry out the plan unless it is a dry run.

    A queue on this machine works until its runs have ended. On Slurm the jobs are submitted.

    Args:
        options: the user's choices.
        rows: all rows of the grid.
        hooks: functions that are called in between.

    Raises:
        ConfigError: an input is wrong, or sbatch refused a job.
        UnavailableError: Slurm does not answer.
    """
    _check_places(options)
    prefetch = _start_prefetch(options)
    known_data = _check_data(options, rows)
    chosen = _chosen(options, rows)
    keep_private(options.profile.group)
    what = "queue" if options.runs_here else "submission"
    with nullcontext() if options.dry_run else grid_lock(options.folder, what):
        if options.on_slurm:
            recover_pending_submissions(options.folder)
        resolver = observe(options.folder, needs_answer=options.on_slurm)
        plan = make_plan_of(options, chosen, known_data, resolver)
        if options.on_slurm:
            prefetch.join()
        hooks.show(plan)
        if options.runs_here:
            return _run_here(
                plan,
                lambda: make_plan_of(options, chosen, known_data, observe(options.folder)),
                hooks,
            )
        if options.prepare:
            _prepare(plan)
        elif not options.dry_run:
            recover_stalled(plan.folder, resolver)
            _submit_array(plan, resolver, hooks)
    return Outcome(plan)


def _check_places(options: Options) -> None:
    """Raise ConfigError if the runs cannot be written there. Nothing is written before this."""
    trust_group(options.profile.group)
    check_place(options.folder.path, options.folder.path.parent)
    if options.on_slurm:
        require_slurm(options.profile.name)
        check_shared(options.folder.path, options.profile)


def _start_prefetch(options: Options) -> Thread:
    """Ask Slurm for the site's limits while this process checks the rest."""
    profile = options.profile
    limits_of = (profile.account, profile.qos, profile.partition)
    thread = Thread(target=prefetch_site_limits, args=limits_of, daemon=True)
    if options.on_slurm:
        thread.start()
    return thread


def _chosen(options: Options, rows: list[GridRow]) -> list[GridRow]:
    names = set(options.variants)
    return [row for row in rows if row.name in names]


def _check_data(options: Options, rows: list[GridRow]) -> dict[str, str]:
    """Check weights of the chosen rows and data of all rows. Return data set -> fingerprint.

    It may pack the default data set, so it is the last of the checks.
    """
    chosen = _chosen(options, rows)
    check_folders(chosen)
    models = (row.config.model for row in chosen)
    # Lines of `setup` may give the jobs another hub cache.
    check_pretrained(models, may_lack=bool(options.profile.setup))
    metrics = (options.grid.metric, *options.grid.more_metrics)
    return fingerprints(rows, options.data_root, options.dry_run, metrics)


def _prepare(plan: Plan) -> None:
    from furnace_hpc.launch import slurm_array

    template = find_shipped("slurm/array.sbatch")  # first, since it may be refused
    submission = slurm_array.prepare(plan).path
    write_specs(plan)
    show_message(f"prepared {submission}")
    for shape, rows in plan.shapes.items():
        array = Array(shape, 0, tuple(rows))
        flags = " ".join([f"--array={ranges(array.indices)}", *sbatch_flags(plan.profile, shape)])
        show_message(
            " ".join([f"then: sbatch {flags} {template} {submission}", *array.shared_rows])
        )


def _submit_array(plan: Plan, resolver: StatusResolver, hooks: Hooks) -> None:
    if plan.to_do:
        hooks.confirm()
        from furnace_hpc.launch import slurm_array

        for line in slurm_array.submit_plan(plan, resolver.job_cache.live_jobs):
            show_message(line)
        show_message(f"then: {grid_command('status', plan.folder, '--watch')}")
    else:
        record(plan)
    if line := unattended_trials(plan, resolver):
        show_message(line)


def _run_here(plan: Plan, plan_again: Callable[[], Plan], hooks: Hooks) -> Outcome:
    """Run the queue on this machine.

    When the trials of a tuned grid have chosen values, the queue continues with the table's runs.
    When the runs that others start from are done, it continues with those others.
    """
    while True:
        if not plan.to_do:
            record(plan)
        elif not _run_queue(plan, hooks):
            return Outcome(plan, is_stopped=True)
        if not plan.num_later:
            return Outcome(plan)
        before, plan = plan, plan_again()
        if plan.num_later == before.num_later:
            for note in plan.notes:
                show_message(note)
            return Outcome(plan)
        hooks.show(plan)


def _run_queue(plan: Plan, hooks: Hooks) -> bool:
    from furnace_hpc.launch import local_queue

    return local_queue.submit_plan(plan, hooks.queue_starts)
