"""What every call of the API does: print nothing, leave the process as it is, raise ConfigError."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.access import GROUP_ACCESS
from furnace_hpc.launch.grids.messages import collected
from furnace_hpc.runs.folder import explain
from furnace_hpc.runs.snapshot import forget_code
from furnace_hpc.runs.submitted import set_options
from furnace_hpc.slurm.client import forget_answers


@contextmanager
def quiet(name: str) -> Iterator[list[str]]:
    """Collect the lines that a command would print, and turn errors of files into ConfigError.

    A submission changes the process: new files are private, and a profile may trust the user's
    groups. Afterwards both are as before, because a notebook writes files of its own.

    Slurm's answers and the hash of the code are not reused from an earlier call.

    Args:
        name: the call, for errors.

    Raises:
        ConfigError: the operating system refused something.
    """
    forget_answers()
    forget_code()
    umask, group = os.umask(0o077), os.environ.get(GROUP_ACCESS)
    os.umask(umask)
    try:
        with collected() as lines:
            yield lines
    except OSError as error:
        if error.errno is None:
            raise
        raise explain(error, f"{name} could not continue") from error
    finally:
        os.umask(umask)
        os.environ.pop(GROUP_ACCESS, None)
        if group is not None:
            os.environ[GROUP_ACCESS] = group


def check_lists(**given: Any) -> None:
    """Raise ConfigError if an argument is one text where a list is wanted."""
    for name, value in given.items():
        if isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}, wanted a list. Write [{value!r}]")


def key_values(name: str, given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return settings as `key=value`, as the commands take them.

    Args:
        name: the argument, for errors.
        given: a mapping of keys to values, or a list of `key=value`.

    Raises:
        ConfigError: it is one text, or a value has no form in JSON.
    """
    check_lists(**{name: given})
    if not isinstance(given, Mapping):
        return list(given)
    try:
        return set_options(dict(given))[1::2]
    except (TypeError, ValueError):
        key = next(key for key, value in given.items() if not _has_json(value))
        raise ConfigError(
            f"{name}[{key!r}] is {given[key]!r} of type {type(given[key]).__name__}, wanted a "
            f"text, a number, a boolean, a list or None"
        ) from None


def _has_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
