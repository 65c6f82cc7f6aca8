"""Turn a grid into runs: plan, show the plan, and submit a Slurm array or start a local queue.

furnace submit --grid ablation --dry-run     show what would be done, and why
furnace submit --grid ablation               do it: skip done runs, resume interrupted ones
"""

import gc
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from furnace_hpc.cli import run_command, stop_cycle_search
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import load_grid, with_settings
from furnace_hpc.config.parsing.numbers import whole_number
from furnace_hpc.console.options import Cluster, DataRoot, GridFile, RunsRoot, Variants
from furnace_hpc.launch.grids.options import read_options
from furnace_hpc.launch.grids.submit_grid import Hooks, Outcome, submit_grid
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.launch.planning.show_plan import choose_profile, print_batch_texts, print_plan

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
    str,
    typer.Option("--code", help="`new`: start runs of older code or other weights again at step 0"),
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
    stop_cycle_search()
    study, profile = with_settings(load_grid(grid), set_ or []), choose_profile(cluster)
    options, rows = read_options(
        study,
        profile,
        variants=variant or [],
        seeds=seed or [],
        retry=retry,
        new_code=new_code == "new",
        adopt=adopt,
        resume_with=resume_with or [],
        canary=canary,
        dry_run=dry_run,
        prepare=prepare,
        runs_dir=runs_dir,
        data_dir=data_dir,
    )
    if options.runs_here or wait:
        gc.enable()
    outcome = submit_grid(options, rows, Hooks(show=print_plan, confirm=_confirm(yes)))
    if options.dry_run:
        print_batch_texts(outcome.plan)
    elif options.runs_here:
        _end_here(outcome)
    elif wait and options.on_slurm:
        _wait(outcome.plan)


def _confirm(yes: bool) -> Callable[[], object]:
    """Ask the user before jobs are submitted, on a terminal and without --yes."""
    if yes or not sys.stdin.isatty():
        return lambda: None
    return lambda: typer.confirm("Submit?", default=True, abort=True)


def _wait(plan: Plan) -> None:
    """Show the status until all runs have ended, then print the table."""
    from furnace_hpc.status import watch

    watch(plan.folder)
    from furnace_hpc.aggregate import show_table
    from furnace_hpc.runs.notices.outbox import send_missing

    for line in send_missing(plan.folder):
        print(line, file=sys.stderr)
    raise typer.Exit(show_table(plan.grid, plan.folder))


def _end_here(outcome: Outcome) -> None:
    """Print the table of the grid. Exit with 1 if a planned run is not done."""
    if outcome.is_stopped:
        print("stopped; the same command resumes from the checkpoints", file=sys.stderr)
        raise typer.Exit(130)
    from furnace_hpc.aggregate import show_table
    from furnace_hpc.api.ending import after_queue

    plan = outcome.plan
    try:
        show_table(plan.grid, plan.folder)
    finally:  # also if no run has a result
        after_queue(plan)
    is_complete = all(run.folder.result.is_file() for run in plan.runs)
    raise typer.Exit(int(not is_complete or plan.num_later > 0))


if __name__ == "__main__":
    run_command(main)
