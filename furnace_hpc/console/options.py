"""Declare the options that several commands share. It imports nothing heavy."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.config.parsing.lookup import names_of, runs_root


def _starting_with(find: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Complete a word with the names that `find` returns."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in find() if name.startswith(incomplete)]

    return complete


def _submitted_grids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the folders below the runs root that contain a submitted grid."""
    root = runs_root(ctx.params.get("runs_dir"))
    names = sorted(path.parent.name for path in root.glob("*/grid.yaml"))
    return [name for name in names if name.startswith(incomplete)]


complete_grids = _starting_with(lambda: names_of("grid"))
GridFile = Annotated[
    str,
    typer.Option(
        help="name of a grid in experiments/, or path of its file",
        autocompletion=complete_grids,
    ),
]
_SUBMITTED_GRID = typer.Option(
    help="name of a submitted grid, or path of its file", autocompletion=_submitted_grids
)
SubmittedGrid = Annotated[str, _SUBMITTED_GRID]
OptionalSubmittedGrid = Annotated[str | None, _SUBMITTED_GRID]
Cluster = Annotated[
    str,
    typer.Option(
        help="name of a profile in slurm/clusters/, `local`, or `auto`",
        autocompletion=_starting_with(lambda: ["auto", *names_of("cluster")]),
    ),
]
Variants = Annotated[list[str] | None, typer.Option("--variant", help="only this row; repeatable")]
RunsRoot = Annotated[
    Path | None,
    typer.Option(
        "--runs-root",
        help="folder of the runs; on Slurm, all nodes must see it [$FURNACE_RUNS or ./runs]",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="folder of the packed data [$FURNACE_DATA or ./data]"),
]
