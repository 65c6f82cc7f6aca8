"""Find how the user can call `furnace`, so that commands in messages work when they are pasted."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def furnace(*words: str) -> str:
    """`furnace WORDS` for the shell that started this process.

    If the environment is not activated, the command begins with the path of the `furnace` script.
    If there is no script, it begins with the path of Python.
    """
    script, python = Path(sys.prefix) / "bin" / "furnace", Path(sys.executable)
    found = shutil.which("furnace")
    if found and (not script.exists() or Path(found).samefile(script)):
        start = ["furnace"]
    elif os.access(script, os.X_OK):
        start = [_near(script)]
    else:
        return shlex.join([_near(python), "-m", "furnace_hpc", *words])
    return shlex.join([*start, *words])


def _near(path: Path) -> str:
    """The path relative to the working directory if it is below it.

    Links are kept: the Python of a virtual environment is one.
    """
    here = Path.cwd()
    if path.is_relative_to(here):
        path = path.relative_to(here)
    return str(path)
