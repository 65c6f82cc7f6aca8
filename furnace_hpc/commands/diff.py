"""Compare two runs: `furnace diff RUN RUN`."""

import sys
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.console.options import RunsRoot
from furnace_hpc.runs.comparison.differences import as_json, differences, picture, plain
from furnace_hpc.runs.comparison.facts import Section, read_facts
from furnace_hpc.runs.submitted import named_run

MIN_WIDTH = 80


def main(
    left: Annotated[str, typer.Argument(metavar="RUN", help="folder of a run, or GRID/RUN")],
    right: Annotated[str, typer.Argument(metavar="RUN", help="the other run")],
    only: Annotated[
        list[Section] | None, typer.Option(help="compare only this section; repeatable")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
    runs_dir: RunsRoot = None,
) -> None:
    """Compare two runs: config, code, data, environment and metrics.

    The beginning of a run's name is enough. Names, times and costs are not compared. The exit code
    is 0 if nothing differs, and 1 if something differs.
    """
    root = runs_root(runs_dir)
    ours, theirs = (read_facts(named_run(name, root)) for name in (left, right))
    found = differences(ours, theirs, only or tuple(Section))
    if json_:
        print(as_json(ours, theirs, found))
    elif sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False, markup=False, emoji=False)
        console.width = max(console.width, MIN_WIDTH)
        for part in picture(ours, theirs, found):
            console.print(part)
    else:
        print("\n".join(plain(ours, theirs, found)))
    raise typer.Exit(int(bool(found)))


if __name__ == "__main__":
    run_command(main)
