"""Start and stop a real Slurm of several nodes on this machine: `furnace devcluster up`.

The shell script `slurm/devcluster`, which comes with the package, does the work.
"""

import os
import shutil
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import find_shipped

SCRIPT = "slurm/devcluster"

Words = Annotated[list[str] | None, typer.Argument(metavar="COMMAND [OPTIONS]")]

main = typer.Typer(
    name="devcluster",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# The script parses its own options, --help included.
@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def devcluster(words: Words = None) -> None:
    """Start a Slurm of four nodes with simulated GPUs on this machine, for tests.

    It needs Debian or Ubuntu, and root to install Slurm. `furnace devcluster help` lists all
    commands and options: up, down, status, kill-node, cut-node and others.
    """
    bash = shutil.which("bash")
    if bash is None:
        raise ConfigError("devcluster needs bash, and there is none on PATH. Install bash")
    script = str(find_shipped(SCRIPT))
    environment = {**os.environ, "DEVCLUSTER_CALLED": "furnace devcluster"}
    os.execve(bash, [bash, script, *(words or [])], environment)


if __name__ == "__main__":
    run_command(main)
