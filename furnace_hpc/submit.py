"""Turn a grid into runs: plan, show the plan, and submit it as one Slurm array, or to a queue on this machine.

furnace submit --grid ablation --dry-run     what would be done, and why
furnace submit --grid ablation               do it; done runs are skipped, interrupted ones go on
"""

import sys
from contextlib import nullcontext
from dataclasses import replace
from threading import Thread
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import load_grid, select_names, with_settings
from furnace_hpc.config.parsing.lookup import data_root, find_shipped, runs_root
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.launch.arrays import ranges
from furnace_hpc.launch.batch_script import sbatch_flags
from furnace_hpc.launch.dataset_checks import fingerprints
from furnace_hpc.launch.plan import Choices, Plan
from furnace_hpc.launch.planner import check_retry, make_plan
from furnace_hpc.launch.show_plan import check_shared, choose_profile, print_batch_texts, print_plan
from furnace_hpc.launch.submission import (
    grid_lock,
    record,
    recover_pending_submissions,
    write_specs,
)
from furnace_hpc.monitor.run_status import StatusResolver, observe
from furnace_hpc.options import Cluster, DataRoot, GridFile, RunsRoot, Variants
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.resume_overrides import read_overrides
from furnace_hpc.runs.snapshot import source
from furnace_hpc.runs.submitted import command_on
from furnace_hpc.runs.trust import check_place, keep_private, trust_group
from furnace_hpc.slurm.client import prefetch_site_limits, require_slurm


def main(
    grid: GridFile,
    cluster: Cluster = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value laid over every row; repeatable")
    ] = None,
    variant: Variants = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(parser=whole_number, metavar="INTEGER", help="only this seed; repeatable"),
    ] = None,
    retry: Annotated[
        str, typer.Option(help="failed runs to try again: `failed`, or reasons, comma-separated")
    ] = "",
    new_code: Annotated[
        str, typer.Option("--code", help="`new`: start runs of older code again at step 0")
    ] = "",
    adopt: Annotated[
        bool,
        typer.Option(
            help="take finished runs of the same config that have another row's or grid's name"
        ),
    ] = True,
    resume_with: Annotated[
        list[str] | None,
        typer.Option(
            help="begun runs go on with another deepspeed=FILE or micro_batch_size=N; repeatable"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the plan (and the batch script) and stop")
    ] = False,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="write the run folders and stop; slurm/array.sbatch takes them"
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Slurm: stay until all runs have ended, then print the table"),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="do not ask before submitting to Slurm")
    ] = False,
    runs_dir: RunsRoot = None,
    data_dir: DataRoot = None,
) -> None:
    """Turn a grid into runs, and runs into a table.

    Done runs are skipped and interrupted ones go on where they stopped, so the same command can be given again at
    any time. Without Slurm the runs wait in a queue on this machine, and the table is printed at the end.
    """
    if new_code not in {"", "new"}:
        raise ConfigError(
            f"--code got {new_code!r}, wanted `new` or nothing: runs keep the code they began with"
        )
    study, profile = with_settings(load_grid(grid), set_ or []), choose_profile(cluster)
    words = frozenset(word.strip() for word in retry.split(",") if word.strip())
    check_retry(words)
    otherwise = read_overrides(resume_with or [])
    rows = expand_rows(study)
    variants = select_names([row.name for row in rows], variant or [], "variant")
    seeds = select_names([str(s) for s in study.seeds], [str(s) for s in seed or []], "seed")
    folder = GridFolder(runs_root(runs_dir) / study.name)
    trust_group(profile.group)
    check_place(folder.path, folder.path.parent)  # before anything is written
    asks_slurm = profile.executor == "slurm" and not (dry_run or prepare)
    if asks_slurm:
        require_slurm(profile.name)
        check_shared(folder.path, profile)
    site = Thread(
        target=prefetch_site_limits,
        args=(profile.account, profile.qos, profile.partition),
        daemon=True,
    )
    if asks_slurm:
        site.start()
    # Lines of `setup` may give the jobs another hub cache.
    check_pretrained(
        (row.config.model for row in rows if row.name in variants), may_lack=bool(profile.setup)
    )
    # last of the checks: it may pack the default set
    prints = fingerprints(rows, data_root(data_dir), dry_run)
    specs = [
        s
        for s in expand(study, prints, rows)
        if s.variant in variants and str(s.config.seed) in seeds
    ]
    choices = Choices(
        code_hash(),
        source().snapshot_hash,
        data_root(data_dir),
        words,
        new_code == "new",
        otherwise,
    )

    keep_private(profile.group)
    what = "queue" if profile.executor == "local" and not prepare else "submission"
    with nullcontext() if dry_run else grid_lock(folder, what):
        if asks_slurm:
            recover_pending_submissions(folder)
        observer = observe(folder, must=asks_slurm)
        plan = make_plan(
            study, specs, profile, folder, replace(choices, get_status=observer, adopt=adopt)
        )
        if asks_slurm:
            site.join()
        _carry_out(plan, observer, dry_run=dry_run, prepare=prepare, yes=yes)
    if wait and asks_slurm:
        _wait(plan)


def _carry_out(
    plan: Plan, observer: StatusResolver, *, dry_run: bool, prepare: bool, yes: bool
) -> None:
    """Do with a plan, under the grid's lock, what was asked for."""
    print_plan(plan)
    if dry_run:
        print_batch_texts(plan)
    elif prepare:
        _prepare(plan)
    elif plan.profile.executor == "slurm":
        recover_stalled(plan.folder, observer)
        _submit_array(plan, observer.evidence.live_jobs, yes)
    else:
        _run_here(plan)


def _prepare(plan: Plan) -> None:
    from furnace_hpc.launch import slurm_array

    submission = slurm_array.prepare(plan).path
    write_specs(plan)
    print(f"prepared {submission}")
    for shape, rows in plan.shapes.items():
        asked = " ".join(sbatch_flags(plan.profile, shape))
        print(
            f"then: sbatch --array={ranges(rows)} {asked} {find_shipped('slurm/array.sbatch')} {submission}"
        )


def recover_stalled(folder: GridFolder, observer: StatusResolver) -> None:
    """What was submitted before and is stuck: jobs that Slurm holds, arrays without their follow-up job."""
    if observer.places:
        from furnace_hpc.launch import slurm_array
        from furnace_hpc.monitor.held_jobs import release_held

        for line in (
            *release_held(observer.evidence),
            *slurm_array.send_missing_follow_ups(folder, observer.evidence),
        ):
            print(line)


def _submit_array(plan: Plan, live_jobs: int, yes: bool) -> None:
    if not plan.to_do:
        record(plan)
        return
    if not yes and sys.stdin.isatty():
        typer.confirm("Submit?", default=True, abort=True)
    from furnace_hpc.launch import slurm_array

    for line in slurm_array.submit_plan(plan, live_jobs):
        print(line)
    print(f"then: {command_on('status', plan.folder, '--watch')}")


def _wait(plan: Plan) -> None:
    """Watch until everything has ended, and print the table."""
    from furnace_hpc.status import watch

    watch(plan.folder)
    from furnace_hpc.aggregate import show_table

    raise typer.Exit(show_table(plan.grid, plan.folder))


def _run_here(plan: Plan) -> None:
    """Run the queue, then print the table of the whole grid; exit 1 when runs that were asked for are not done."""
    if plan.to_do:
        from furnace_hpc.launch import local_queue

        if not local_queue.submit_plan(plan):
            print("stopped; the same command goes on from the checkpoints", file=sys.stderr)
            raise typer.Exit(130)
    else:
        record(plan)
    from furnace_hpc.aggregate import show_table

    show_table(plan.grid, plan.folder)
    raise typer.Exit(0 if all(run.folder.result.is_file() for run in plan.runs) else 1)


if __name__ == "__main__":
    run_command(main)
