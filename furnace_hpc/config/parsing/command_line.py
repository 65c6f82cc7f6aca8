"""How the user can call `furnace`: for messages that name a command, so that it works when it is pasted."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def furnace(*words: str) -> str:
    """`furnace WORDS` for the shell that has started this process.

    Where the environment is not activated, it begins with the path of its `furnace` script; where there is no script,
    with its Python.
    """
    script, python = Path(sys.prefix) / "bin" / "furnace", Path(sys.executable)
    found = shutil.which("furnace")
    if found and (not script.exists() or Path(found).samefile(script)):
        start = ["furnace"]
    elif os.access(script, os.X_OK):
        start = [_near(script)]
    else:
        return shlex.join([_near(python), "-m", f"furnace_hpc.{words[0]}", *words[1:]])
    return shlex.join([*start, *words])


def _near(path: Path) -> str:
    """The path from the working directory on, where it lies below; never resolved: a venv's Python is a link."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
