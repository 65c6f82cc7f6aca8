"""Train the shipped ablation on the default data set: `furnace demo`."""

import os
import sys
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.parsing.command_line import furnace
from furnace_hpc.console.options import Cluster

GRID = "ablation"
QUICK = ("--seed", "0", "--set", "steps=20")

Quick = Annotated[
    bool, typer.Option("--quick", help="one seed and 20 steps, in a minute; results mean nothing")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only show the plan")]


def main(quick: Quick = False, cluster: Cluster = "local", dry_run: DryRun = False) -> None:
    """Pack the default data set, train 40 small runs, and print the ablation table.

    It takes five to ten minutes on two cores and needs no network. Files are written to data/,
    runs/ and results/ in the working directory. After Ctrl-C the same command resumes.

    `furnace demo` is `furnace submit --grid ablation --cluster local`.
    """
    arguments = submit_arguments(quick, cluster, dry_run)
    print(furnace("submit", *arguments), flush=True)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "furnace_hpc.submit", *arguments])


def submit_arguments(quick: bool, cluster: str, dry_run: bool) -> list[str]:
    """Return the arguments of `furnace submit`. On Slurm the command waits for the table."""
    arguments = ["--grid", GRID, "--cluster", cluster]
    if quick:
        arguments += QUICK
    if cluster != "local":
        arguments.append("--wait")
    if cluster == "devcluster":  # no other user waits for these nodes
        arguments.append("--yes")
    if dry_run:
        arguments.append("--dry-run")
    return arguments


if __name__ == "__main__":
    run_command(main)
