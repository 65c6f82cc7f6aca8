"""Turn a grid into runs: plan, show the plan, and submit a Slurm array or start a local queue.

furnace submit --grid ablation --dry-run     show what would be done, and why
furnace submit --grid ablation               do it: skip done runs, resume interrupted ones
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid, load_grid, select_names, with_settings
from furnace_hpc.config.grids.initial_weights import check_folders
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.parsing.lookup import data_root, find_shipped, runs_root
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.console.options import Cluster, DataRoot, GridFile, RunsRoot, Variants
from furnace_hpc.launch.arrays import Array, ranges
from furnace_hpc.launch.batch_script import sbatch_flags
from furnace_hpc.launch.measured.limits import site_longest_min
from furnace_hpc.launch.planning.dataset_checks import fingerprints
from furnace_hpc.launch.planning.plan import Choices, Plan, Scope
from furnace_hpc.launch.planning.planner import check_retry, make_plan
from furnace_hpc.launch.planning.show_plan import (
    check_shared,
    choose_profile,
    print_batch_texts,
    print_plan,
)
from furnace_hpc.launch.stalled import recover_stalled, unattended_trials
from furnace_hpc.launch.submission import (
    grid_lock,
    record,
    recover_pending_submissions,
    write_specs,
)
from furnace_hpc.monitor.run_status import StatusResolver, observe
from furnace_hpc.monitor.tuning import GetStatus, next_stage
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.own_code import own_code_to_copy
from furnace_hpc.runs.resume_overrides import read_overrides
from furnace_hpc.runs.snapshot import source
from furnace_hpc.runs.submitted import grid_command
from furnace_hpc.runs.trust import check_place, keep_private, trust_group
from furnace_hpc.slurm.client import prefetch_site_limits, require_slurm

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value for every row; repeatable")
]
Seeds = Annotated[
    list[int] | None,
    typer.Option(parser=whole_number, metavar="INTEGER", help="only this seed; repeatable"),
]
Retry = Annotated[
    str, typer.Option(help="failed runs to retry: `failed`, or reasons, comma-separated")
]
NewCode = Annotated[
    str, typer.Option("--code", help="`new`: start runs of older code again at step 0")
]
Adopt = Annotated[
    bool, typer.Option(help="use finished runs of the same config in another row or grid")
]
ResumeWith = Annotated[
    list[str] | None,
    typer.Option(help="resume runs with another deepspeed=FILE or micro_batch_size=N; repeatable"),
]
Canary = Annotated[
    bool, typer.Option("--canary", help="first measure one run of each kind for a few steps")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only show the plan and the batch scripts")]
Prepare = Annotated[
    bool, typer.Option("--prepare", help="only write the run folders, for slurm/array.sbatch")
]
Wait = Annotated[
    bool, typer.Option("--wait", help="on Slurm: wait for all runs, then print the table")
]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask before submitting to Slurm")]


@dataclass(frozen=True)
class Options:
    """The grid, the cluster and the user's choices, read and checked."""

    grid: Grid
    profile: ClusterProfile
    folder: GridFolder
    data_root: Path
    variants: list[str]
    seeds: list[str]
    retry: frozenset[str]
    resume_with: Mapping[str, Any]
    new_code: bool
    adopt: bool
    dry_run: bool
    prepare: bool
    canary: bool = False

    @property
    def on_slurm(self) -> bool:
        """Whether the command submits jobs, and asks Slurm for the state of runs."""
        return self.profile.executor == "slurm" and not (self.dry_run or self.prepare)


def main(
    grid: GridFile,
    cluster: Cluster = "auto",
    set_: Settings = None,
    variant: Variants = None,
    seed: Seeds = None,
    retry: Retry = "",
    new_code: NewCode = "",
    adopt: Adopt = True,
    resume_with: ResumeWith = None,
    canary: Canary = False,
    dry_run: DryRun = False,
    prepare: Prepare = False,
    wait: Wait = False,
    yes: Yes = False,
    runs_dir: RunsRoot = None,
    data_dir: DataRoot = None,
) -> None:
    """Turn a grid into runs, and runs into a table.

    Done runs are skipped, and interrupted ones resume. So the same command can be repeated at any
    time. Without Slurm the runs wait in a queue on this machine, and the command prints the table
    at the end.
    """
    if new_code not in {"", "new"}:
        raise ConfigError(
            f"--code got {new_code!r}, wanted `new` or nothing: runs keep the code they began with"
        )
    study, profile = with_settings(load_grid(grid), set_ or []), choose_profile(cluster)
    rows = expand_rows(study)
    options = Options(
        grid=study,
        profile=profile,
        folder=GridFolder(runs_root(runs_dir) / study.name),
        data_root=data_root(data_dir),
        retry=_read_retry(retry),
        resume_with=read_overrides(resume_with or []),
        variants=select_names([row.name for row in rows], variant or [], "variant"),
        seeds=select_names(list(map(str, study.seeds)), list(map(str, seed or [])), "seed"),
        new_code=new_code == "new",
        adopt=adopt,
        dry_run=dry_run,
        prepare=prepare,
        canary=canary,
    )
    _check_places(options)
    prefetch = _start_prefetch(options)
    known_data = _check_data(options, rows)
    chosen = _chosen(options, rows)
    plan = _plan_and_submit(options, chosen, known_data, prefetch, yes)
    if wait and options.on_slurm:
        _wait(plan)


def _read_retry(text: str) -> frozenset[str]:
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    check_retry(words)
    return words


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


def _plan_and_submit(
    options: Options, rows: list[GridRow], known_data: dict[str, str], prefetch: Thread, yes: bool
) -> Plan:
    """Plan and submit under the grid's lock. A dry run takes no lock."""
    keep_private(options.profile.group)
    is_local = options.profile.executor == "local" and not options.prepare
    what = "queue" if is_local else "submission"
    with nullcontext() if options.dry_run else grid_lock(options.folder, what):
        if options.on_slurm:
            recover_pending_submissions(options.folder)
        resolver = observe(options.folder, needs_answer=options.on_slurm)
        plan = make_plan_of(options, rows, known_data, resolver)
        if options.on_slurm:
            prefetch.join()
        print_plan(plan)
        if is_local and not options.dry_run:
            _run_here(
                plan, lambda: make_plan_of(options, rows, known_data, observe(options.folder))
            )
        else:
            _carry_out(plan, options, resolver, yes)
    return plan


def make_plan_of(
    options: Options, rows: list[GridRow], known_data: dict[str, str], get_status: GetStatus
) -> Plan:
    """Plan the runs of the chosen rows and seeds. Of a tuned grid, plan what can run now.

    Runs that start from the weights of others wait in the plan.

    Args:
        options: the user's choices.
        rows: the chosen rows.
        known_data: data set name -> fingerprint of its packed contents.
        get_status: returns the status of a run.

    Raises:
        ConfigError: as `make_plan`, or a trial is not valid.
    """
    grid, folder = options.grid, options.folder
    choices = Choices(
        code_hash=code_hash(),
        snapshot=source(own_code_to_copy(grid)).snapshot_hash,
        data_root=options.data_root,
        retry=options.retry,
        new_code=options.new_code,
        resume_with=options.resume_with,
        adopt=options.adopt,
        get_status=get_status,
        canary=options.canary,
        longest_min=site_longest_min(options.profile),
    )
    if grid.tune is None:
        specs = [
            spec
            for spec in expand(grid, known_data, rows)
            if str(spec.config.seed) in options.seeds
        ]
        plan = make_plan(grid, specs, options.profile, folder, choices)
        return replace(plan, scope=_scope(options)) if plan.num_later else plan
    stage = next_stage(
        grid,
        rows,
        known_data,
        folder,
        get_status,
        write=not options.dry_run,
        code_hash=choices.code_hash if options.new_code else "",
        adopt=options.adopt,
    )
    wanted = {*options.seeds, *map(str, grid.tune.seeds)}
    specs = [spec for spec in stage.runs if str(spec.config.seed) in wanted]
    plan = make_plan(grid, specs, options.profile, folder, choices)
    return replace(
        plan,
        scope=_scope(options) if stage.waiting or plan.num_later else None,
        num_waiting=len(stage.waiting),
        tuning=tuple(stage.lines(len(stage.waiting) * len(options.seeds))),
    )


def _scope(options: Options) -> Scope:
    data_root = str(options.data_root.resolve())
    scope = Scope(options.variants, options.seeds, data_root, options.adopt, options.new_code)
    if not options.canary:
        return scope
    return scope._replace(
        canary=True, retry=sorted(options.retry), resume_with=dict(options.resume_with)
    )


def _carry_out(plan: Plan, options: Options, resolver: StatusResolver, yes: bool) -> None:
    """Do with the plan what the options say, without a local queue."""
    if options.dry_run:
        print_batch_texts(plan)
    elif options.prepare:
        _prepare(plan)
    else:
        recover_stalled(plan.folder, resolver)
        _submit_array(plan, resolver.job_cache.live_jobs, yes)
        if line := unattended_trials(plan, resolver):
            print(line)


def _prepare(plan: Plan) -> None:
    from furnace_hpc.launch import slurm_array

    template = find_shipped("slurm/array.sbatch")  # first, since it may be refused
    submission = slurm_array.prepare(plan).path
    write_specs(plan)
    print(f"prepared {submission}")
    for shape, rows in plan.shapes.items():
        array = Array(shape, 0, tuple(rows))
        flags = " ".join([f"--array={ranges(array.indices)}", *sbatch_flags(plan.profile, shape)])
        print(" ".join([f"then: sbatch {flags} {template} {submission}", *array.shared_rows]))


def _submit_array(plan: Plan, live_jobs: int, yes: bool) -> None:
    if not plan.to_do:
        record(plan)
        return
    if not yes and sys.stdin.isatty():
        typer.confirm("Submit?", default=True, abort=True)
    from furnace_hpc.launch import slurm_array

    for line in slurm_array.submit_plan(plan, live_jobs):
        print(line)
    print(f"then: {grid_command('status', plan.folder, '--watch')}")


def _wait(plan: Plan) -> None:
    """Show the status until all runs have ended, then print the table."""
    from furnace_hpc.status import watch

    watch(plan.folder)
    from furnace_hpc.aggregate import show_table
    from furnace_hpc.runs.notices.outbox import send_missing

    for line in send_missing(plan.folder):
        print(line, file=sys.stderr)
    raise typer.Exit(show_table(plan.grid, plan.folder))


def _run_here(plan: Plan, plan_again: Callable[[], Plan]) -> None:
    """Run the queue, then print the table of the grid. Exit with 1 if a planned run is not done.

    When the trials of a tuned grid have chosen values, the queue continues with the table's runs.
    When the runs that others start from are done, it continues with those others.
    """
    while True:
        if plan.to_do:
            _run_queue(plan)
        else:
            record(plan)
        if not plan.num_later:
            break
        before, plan = plan, plan_again()
        if plan.num_later == before.num_later:
            print(*plan.notes, sep="\n", end="\n" * bool(plan.notes))
            break
        print_plan(plan)
    from furnace_hpc.aggregate import show_table
    from furnace_hpc.api.notice import notify

    show_table(plan.grid, plan.folder)
    notify(plan.grid, plan.folder)
    is_complete = all(run.folder.result.is_file() for run in plan.runs)
    raise typer.Exit(int(not is_complete or plan.num_later > 0))


def _run_queue(plan: Plan) -> None:
    from furnace_hpc.launch import local_queue

    if not local_queue.submit_plan(plan):
        print("stopped; the same command resumes from the checkpoints", file=sys.stderr)
        raise typer.Exit(130)


if __name__ == "__main__":
    run_command(main)
