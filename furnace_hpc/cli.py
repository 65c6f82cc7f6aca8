"""Parse and run commands: one error without a traceback, exit codes, and the `furnace` script.

Exit codes: 0 done; 1 runs failed or are missing, or the cluster does not answer; 2 invalid input;
130 interrupted; 141 the reader of the output ended, as `head -1` does (commands that only print).
"""

import atexit
import gc
import importlib
import importlib.util
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
    "demo": "train the shipped ablation on this machine, and print its table",
    "new": "write a first grid for a packed data set, or copy a shipped grid",
    "submit": "turn a grid into runs, and start them on Slurm or in a queue on this machine",
    "status": "show each run's state, step, loss, time left and reason, or a run's logs",
    "logs": "print or follow the logs of runs",
    "diff": "compare two runs: config, code, data, environment, metrics",
    "open": "show the report of a grid in the browser",
    "clean": "show the sizes of a grid's files, and delete checkpoints that nothing needs",
    "cancel": "stop the jobs of a grid; submit resumes its runs later",
    "aggregate": "turn finished runs into tables and figures",
    "track": "mirror the runs to TensorBoard, W&B, MLflow or trackio",
    "pack": "turn raw data into memory-mapped columns",
    "doctor": "check this machine, Slurm and a compute node, and report how to fix each problem",
    "devcluster": "start or stop a Slurm of several nodes on this machine, for tests",
    "drill": "disturb the runs of a tiny grid on this cluster, and check that nothing is lost",
    "check": "check that your own network, fusion, encoder or loss keeps its contract",
    "train": "train one run folder, with torchrun or one process",
    "export": "turn a run's checkpoint into a folder that predicts on any machine",
    "predict": "predict with an exported model from text, image, audio, numbers, or some of them",
    "serve": "predict with an exported model on a page in the browser",
    "publish": "make a folder for a hub: model, card, table, report and checksums",
    "schema": "print the JSON Schema of grids, cluster profiles or DeepSpeed files, for editors",
}
ONLY_PRINT = {
    "status",
    "logs",
    "diff",
    "predict",
    "schema",
}  # they exit if the reader of their output ends


def stop_cycle_search() -> None:
    """Stop Python's search for reference cycles: it takes a third of the time for 10,000 runs.

    A command that works for hours calls `gc.enable` again.
    """
    gc.disable()
    atexit.register(gc.freeze)  # Python searches once more when it exits


def run_command(command: Callable[..., Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command, a function or an app with subcommands, and exit with its code."""
    _keep_working_directory_out()
    app = _app_of(command)
    name = app.info.name
    if not isinstance(name, str):
        name = command.__module__.rsplit(".", 1)[-1]
    if name == "__main__":
        name = sys.argv[0].rsplit("/", 1)[-1].removesuffix(".py")
    streams.set_up(ends=name in ONLY_PRINT)
    arguments = None if argv is None else list(argv)
    try:
        try:
            app(args=arguments, prog_name=f"furnace {name}")
        finally:
            sys.stdout.flush()
        sys.exit(0)
    except ConfigError as error:
        _print_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        _print_error(str(explain(error, f"furnace {name} could not continue")))
        sys.exit(2)


def _app_of(command: Callable[..., Any]) -> typer.Typer:
    """Wrap a command in an app. A command with subcommands is an app already."""
    if isinstance(command, typer.Typer):
        return command
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    app.command(context_settings=settings)(command)
    return app


def furnace() -> NoReturn:
    """Run the console script. `furnace COMMAND ...` is `python -P -m furnace_hpc COMMAND ...`."""
    _keep_working_directory_out()
    first, *rest = sys.argv[1:] or ["--help"]
    if _COMPLETE in os.environ or first in _COMPLETION_OPTIONS:
        from furnace_hpc.console import completion

        completion.run(COMMANDS, lambda name: _app_of(_load(name)))
    if first in COMMANDS:
        run_command(_load(first), rest)
    streams.set_up()
    if first in {"-h", "--help"}:
        _print_help()
        sys.exit(0)
    if first == "--version":
        print(f"furnace {__version__}")
        sys.exit(0)
    _print_error(f"unknown command {first!r}; {nearest(first, COMMANDS)}")
    sys.exit(2)


_COMPLETE = "_FURNACE_COMPLETE"  # the environment variable of the shell's completion script
_COMPLETION_OPTIONS = {"--install-completion", "--show-completion"}


def module_of(name: str) -> str:
    """Return the module of a command: `furnace_hpc.NAME`, or one in `furnace_hpc.commands`."""
    module = f"furnace_hpc.{name}"
    return module if importlib.util.find_spec(module) else f"furnace_hpc.commands.{name}"


def _load(name: str) -> Callable[..., Any]:
    """Import one command. Others are not imported, so that `furnace` starts fast."""
    command: Callable[..., Any] = importlib.import_module(module_of(name)).main
    return command


def _keep_working_directory_out() -> None:
    """Otherwise child processes could import ./torch.py."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def _print_help() -> None:
    print("Usage: furnace COMMAND [OPTIONS]\n")
    print("Train every row of a grid with every seed, and make an ablation table you can trust.\n")
    for name, summary in COMMANDS.items():
        print(f"  {name:<10} {summary}")
    print("\n  furnace COMMAND --help                  options of a command")
    print("  furnace --version                       version")
    print("  furnace --install-completion            completion with TAB (bash, zsh, fish)")
    print("\nFirst steps:")
    print("  furnace submit --grid smoke --dry-run")
    print("  furnace demo                            forty small runs, and their table")
    print(
        "  furnace pack table --source FILE        your own data: each command prints the next one"
    )


def _print_error(problem: str) -> None:
    from rich.console import Console  # slow to import

    for line in masked(problem).splitlines():
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"error: {printable(line)}", markup=False
        )
