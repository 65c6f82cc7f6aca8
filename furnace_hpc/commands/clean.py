"""Free disk space of a grid: `furnace clean --grid G [--keep best|last|none] [--yes]`."""

import sys
from collections import Counter
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.console.options import RunsRoot, SubmittedGrid
from furnace_hpc.launch.submission import grid_lock
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.cleaning.free import free
from furnace_hpc.runs.cleaning.plan import Also, CleanPlan, Keep, ToDelete, make_clean_plan
from furnace_hpc.runs.cleaning.sizes import Kind, show, sizes
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.submitted import find_submitted

LOCK_S = 60  # a submission or a follow-up job holds the lock for seconds


def main(
    grid: SubmittedGrid,
    keep: Annotated[
        list[Keep] | None,
        typer.Option(help="checkpoints of finished runs to keep [best]; repeatable"),
    ] = None,
    also: Annotated[
        list[Also] | None,
        typer.Option(
            help="also delete caches, cached features, or runs that --code new has moved aside; "
            "repeatable"
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the sizes")] = False,
    runs_dir: RunsRoot = None,
) -> None:
    """Show the sizes of a grid's files, ask, and delete checkpoints that nothing needs.

    Of a finished run, the checkpoint that export reads is kept. Checkpoints of unfinished runs are
    kept, and those that other grids use. Tables, reports and logs never change. Links are not
    followed.
    """
    wanted = keep or [Keep.BEST]
    if Keep.NONE in wanted and len(set(wanted)) > 1:
        raise ConfigError("--keep none is given with other values. Give none alone, or remove it")
    folder = find_submitted(grid, runs_root(runs_dir))
    plan = make_clean_plan(folder, observe(folder), wanted, also or [])
    _print(folder, plan)
    if not plan.to_delete:
        print("nothing to delete")
        return
    if dry_run or not (yes or _is_confirmed()):
        return
    with grid_lock(folder, patience_s=LOCK_S):
        again = make_clean_plan(folder, observe(folder), wanted, also or [])
        shown = {one.path for one in plan.to_delete}
        agreed = [one for one in again.to_delete if one.path in shown]
        problems = _free(folder, agreed)
    for problem in problems:
        print(f"not deleted: {problem}", file=sys.stderr)
    raise typer.Exit(int(bool(problems)))


def _is_confirmed() -> bool:
    """Ask the user. Without a terminal nothing is deleted."""
    if not sys.stdin.isatty():
        print("nothing was deleted. Add --yes to delete")
        return False
    if typer.confirm("Delete them?", default=False):
        return True
    print("nothing was deleted")
    return False


def _free(folder: GridFolder, to_delete: list[ToDelete]) -> list[str]:
    """Delete them, print the freed space, and return the problems."""
    problems, num_bytes = list[str](), 0
    try:
        for one, problem in free(folder, to_delete):
            if problem:
                problems.append(problem)
            else:
                num_bytes += one.num_bytes
    finally:  # also after Ctrl-C
        print(f"freed {show(num_bytes)}", flush=True)
    return problems


def _print(folder: GridFolder, plan: CleanPlan) -> None:
    """Print sizes by kind, the checkpoints to keep, and what to delete."""
    freed, num_freed = Counter[Kind](), Counter[Kind]()
    for one in plan.to_delete:
        freed[one.kind] += one.num_bytes
        num_freed[one.kind] += 1
    found = sizes(folder)
    print(f"{'kind':<16} {'files':>9} {'size':>10} {'to free':>10}")
    for kind, size in found.items():
        to_free = show(freed[kind]) if num_freed[kind] else ""
        line = f"{kind:<16} {size.files:>9,} {show(size.num_bytes):>10} {to_free:>10}"
        print(line.rstrip())
    files, total = (sum(column) for column in zip(*found.values(), strict=True))
    print(f"{'all':<16} {files:>9,} {show(total):>10} {show(plan.num_bytes):>10}")
    for line in _kept_lines(plan):
        print(line)
    for line in _freed_lines(folder, plan):
        print(line)


def _kept_lines(plan: CleanPlan) -> list[str]:
    """Group the runs whose checkpoints are kept by the reason."""
    groups: dict[str, list[str]] = {}
    num_bytes = Counter[str]()
    for kept in plan.kept:
        groups.setdefault(kept.why, []).append(kept.run_id)
        num_bytes[kept.why] += kept.num_bytes
    lines = [
        f"keep:   checkpoints of {_names(runs)}, {show(num_bytes[why])}: {why}"
        for why, runs in groups.items()
    ]
    return lines + [f"keep:   {note}" for note in plan.notes]


def _names(runs: list[str]) -> str:
    return runs[0] if len(runs) == 1 else counted(len(runs), "run")


def _freed_lines(folder: GridFolder, plan: CleanPlan) -> list[str]:
    """Group files to delete by their folder."""
    groups: dict[str, list[ToDelete]] = {}
    for one in plan.to_delete:
        groups.setdefault(str(one.path.parent.relative_to(folder.path)), []).append(one)
    lines = []
    for place, found in groups.items():
        names = ", ".join(one.path.name for one in found)
        size = show(sum(one.num_bytes for one in found))
        before = "" if place == "." else f"{place}/: "
        lines.append(f"delete: {before}{names} ({size})")
    return lines


if __name__ == "__main__":
    run_command(main)
