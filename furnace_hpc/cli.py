"""What all commands share: parsing, one-sentence errors, exit codes; and the `furnace` script that finds them.

Exit codes: 0 done; 1 some runs failed or are missing, or the cluster is away; 2 the user's input is wrong;
130 interrupted; 141 the reader of a command that only prints, such as `head -1`, has left.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer

from furnace_hpc import __version__
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.text_safety import masked, printable
from furnace_hpc.console import streams
from furnace_hpc.runs.folder import explain

COMMANDS = {
    "submit": "turn a grid into runs: one Slurm array, or a queue on this machine",
    "status": "a line per run: state, step, loss, time left, and why; or a run's logs",
    "cancel": "stop a grid's jobs; what they did is kept, and submit goes on",
    "aggregate": "turn finished runs into tables and figures",
    "pack": "turn raw data into memory-mapped columns",
    "doctor": "check this machine, its disks and GPUs, Slurm and a compute node, and report how to fix each problem",
    "drill": "disturb a tiny grid on this cluster in every way, and prove that nothing is lost",
    "train": "train one run folder, under torchrun or alone",
    "export": "turn a run's checkpoint into one folder that predicts anywhere",
    "predict": "ask an exported model: text, image, audio, or any of them alone",
    "schema": "print the JSON Schema of grids, cluster profiles or DeepSpeed files, for editors",
}

ONLY_PRINT = {"status", "predict", "schema"}  # with nobody to read it, they have nothing to do


def run_command(command: Callable[..., Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command, a function or an app with commands of its own, and exit with its code."""
    _keep_working_directory_out()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    if isinstance(command, typer.Typer):
        app, name = command, str(command.info.name)
    else:
        app.command(
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
        )(command)
        name = command.__module__.rsplit(".", 1)[-1]
    if name == "__main__":
        name = sys.argv[0].rsplit("/", 1)[-1].removesuffix(".py")
    streams.set_up(ends=name in ONLY_PRINT)
    try:
        try:
            app(args=None if argv is None else list(argv), prog_name=f"furnace {name}")
        finally:
            sys.stdout.flush()
        sys.exit(0)
    except ConfigError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        _complain(str(explain(error, f"furnace {name} could not go on")))
        sys.exit(2)


def furnace() -> NoReturn:
    """The `furnace` console script: `furnace COMMAND ...` is `python -P -m furnace_hpc.COMMAND ...`."""
    _keep_working_directory_out()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        streams.set_up()
    if not arguments or arguments[0] in {"-h", "--help"}:
        _print_help()
        sys.exit(0)
    if arguments[0] == "--version":
        print(f"furnace {__version__}")
        sys.exit(0)
    if arguments[0] not in COMMANDS:
        _complain(f"unknown command {arguments[0]!r}; {nearest(arguments[0], COMMANDS)}")
        sys.exit(2)
    run_command(importlib.import_module(f"furnace_hpc.{arguments[0]}").main, arguments[1:])


def _keep_working_directory_out() -> None:
    """Else what is called torch.py in the working directory is the torch of a child or a worker."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def _print_help() -> None:
    print("Usage: furnace COMMAND [OPTIONS]    (furnace COMMAND --help tells more)\n")
    print(
        "An ablation table you can trust, from one command, whatever the cluster does to your jobs.\n"
    )
    for name, what in COMMANDS.items():
        print(f"  {name:<10} {what}")
    print(
        "\nFirst steps:\n  furnace submit --grid smoke --dry-run\n  furnace submit --grid ablation"
    )


def _complain(sentence: str) -> None:
    from rich.console import Console  # nobody waits for it who has nothing to complain about

    for line in masked(sentence).splitlines():
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"error: {printable(line)}", markup=False
        )
