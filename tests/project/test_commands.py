"""`python -m furnace_hpc.commands.NAME` is `furnace NAME`, for each command of everyday use."""

import subprocess
import sys

import pytest

from furnace_hpc.cli import COMMANDS, module_of

EVERYDAY = [name for name in COMMANDS if module_of(name).startswith("furnace_hpc.commands.")]


def outcome(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m WORDS`."""
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", EVERYDAY)
def test_a_module_runs_its_command(name):
    """It prints the same help, and an unknown option is the same error."""
    assert len(EVERYDAY) > 5
    help_of_module = outcome(module_of(name), "--help")
    assert help_of_module == outcome("furnace_hpc", name, "--help")
    assert help_of_module[0] == 0
    assert f"furnace {name}" in help_of_module[1]
    wrong = outcome(module_of(name), "--no-such-option")
    assert wrong == outcome("furnace_hpc", name, "--no-such-option")
    assert wrong[0] == 2
