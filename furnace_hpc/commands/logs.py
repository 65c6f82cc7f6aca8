"""Print the logs of runs: `furnace logs RUN`, or `furnace logs --grid G --follow`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.trials import row_of
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.console.options import OptionalSubmittedGrid, RunsRoot, Variants
from furnace_hpc.host import lifecycle
from furnace_hpc.monitor.following.logs import LogFollower
from furnace_hpc.monitor.local_queue import read_holder
from furnace_hpc.monitor.logs import Wanted, print_logs_of
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.state import RunState
from furnace_hpc.runs.submitted import find_run, find_submitted, named_run, submitted_run_ids

# Exit code 0. Only with --attempt, --follow can end while the run is running or queued.
FINE = (RunState.DONE, RunState.RUNNING, RunState.QUEUED)
LINES, LINES_OF_EACH = 40, 10  # of one run, and of each of several


def main(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="folder of a run, or GRID/RUN; RUN with --grid"),
    ] = None,
    grid: OptionalSubmittedGrid = None,
    variant: Variants = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="only this seed; repeatable")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="print what is added, until the runs have ended"),
    ] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="only lines of this rank")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="logs of this attempt [the newest]")
    ] = None,
    lines: Annotated[
        int | None, typer.Option(min=1, help="last lines of each log [40; of several runs 10]")
    ] = None,
    runs_dir: RunsRoot = None,
) -> None:
    """Print the logs of one run, or of several runs of a grid.

    The beginning of a run's name is enough. With --follow, the log of each new attempt is printed
    too, and the exit code is 1 if a run has ended without a result.
    """
    folder, runs = _choose(run, grid, variant or [], seed or [], runs_root(runs_dir))
    wanted = Wanted(attempt or 0, rank)
    count = lines or (LINES if len(runs) == 1 else LINES_OF_EACH)
    if not follow:
        for one in runs:
            print_logs_of(folder, one, count, wanted)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    follower = LogFollower(folder, runs, wanted, lambda: _has_queue(folder))
    try:
        statuses = follower.follow(count)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(int(any(status.state not in FINE for status in statuses.values())))


def _choose(
    run: str | None, grid: str | None, variants: list[str], seeds: list[int], root: Path
) -> tuple[GridFolder, list[RunFolder]]:
    """Return the grid's folder and the chosen runs.

    Raises:
        ConfigError: nothing is chosen, or there is no such run.
    """
    if run and (variants or seeds):
        raise ConfigError("RUN is one run already. Remove --variant and --seed")
    if run and grid:
        folder = find_submitted(grid, root)
        return folder, [find_run(folder, run)]
    if run:
        found = named_run(run, root)
        return GridFolder(found.path.parent), [found]
    if not grid:
        raise ConfigError("no run given. Give RUN, or --grid NAME for the runs of a grid")
    folder = find_submitted(grid, root)
    return folder, [folder.run(name) for name in _matching(folder, variants, seeds)]


def _matching(folder: GridFolder, variants: list[str], seeds: list[int]) -> list[str]:
    """Return the ids of the runs of these rows and seeds."""
    known = {run_id: run_id.rsplit("-", 2)[:2] for run_id in submitted_run_ids(folder)}
    rows = {row_of(row) for row, _ in known.values()}
    for name in variants:
        if name not in rows:
            raise ConfigError(f"unknown variant {name!r}; {nearest(name, rows)}")
    wanted = {f"s{seed}" for seed in seeds}
    found = [
        run_id
        for run_id, (row, seed) in known.items()
        if (not variants or row_of(row) in variants) and (not wanted or seed in wanted)
    ]
    if not found:
        have = sorted({int(seed[1:]) for _, seed in known.values()})
        raise ConfigError(
            f"no run has these seeds: {', '.join(map(str, seeds))}. Seeds of the runs: "
            f"{', '.join(map(str, have))}"
        )
    return found


def _has_queue(folder: GridFolder) -> bool:
    """Whether a local queue runs the grid. True if its machine is another one."""
    holder = read_holder(folder)
    if not holder or holder.get("what") != "queue":
        return False
    return lifecycle.is_alive(holder) is not False


if __name__ == "__main__":
    run_command(main)
