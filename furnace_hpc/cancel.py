"""Stop a grid's jobs: `furnace cancel --grid NAME`. Their work is kept, and submit resumes them."""

from furnace_hpc.cli import run_command
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.console.options import RunsRoot, SubmittedGrid, Variants
from furnace_hpc.launch.grids.cancel_grid import cancel_grid
from furnace_hpc.runs.submitted import find_submitted


def main(
    grid: SubmittedGrid,
    variant: Variants = None,
    runs_dir: RunsRoot = None,
) -> None:
    """Stop all jobs of a grid, running and waiting, or the queue on this machine.

    Ranks save a checkpoint if they get the time (KillWait). The next submit resumes from it.
    """
    folder = find_submitted(grid, runs_root(runs_dir))
    for line in cancel_grid(folder, variant or []).lines():
        print(line)


if __name__ == "__main__":
    run_command(main)
