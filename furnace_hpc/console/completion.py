"""Complete `furnace ...` in a shell, and print or install the script of the shell."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

SHELLS = ("bash", "zsh", "fish")


def run(commands: Mapping[str, str], load: Callable[[str], typer.Typer]) -> NoReturn:
    """Answer the script of the shell, `--install-completion` or `--show-completion`, and exit.

    Args:
        commands: command -> summary.
        load: import one command. Called only to complete the options of this command.
    """

    class Commands(TyperGroup):
        """The commands by name. Their modules are not imported to list them."""

        def list_commands(self, ctx: Any) -> list[str]:
            return list(commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in commands:
                return None
            return TyperCommand(cmd_name, help=commands[cmd_name])

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if args[0] in commands:
                return args[0], typer.main.get_command(load(args[0])), args[1:]
            return super().resolve_command(ctx, args)

    app = typer.Typer(cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(_furnace)
    if sys.argv[2:3] and sys.argv[2] in SHELLS:
        # Otherwise typer ignores the name of a shell and detects the one that runs.
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    app(prog_name="furnace")
    sys.exit(0)


def _furnace(version: Annotated[bool, typer.Option("--version")] = False) -> None:
    """Declare the options of `furnace` itself."""
