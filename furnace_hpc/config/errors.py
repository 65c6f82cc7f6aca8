"""Errors that commands print without a traceback."""

import difflib
from collections.abc import Iterable

MAX_NAMES = 500  # in an error


class ConfigError(ValueError):
    """The user's input is wrong. The text says: the name, the value, what is wanted, the fix."""

    exit_code = 2


class UnavailableError(ConfigError):
    """A service, such as Slurm's controller, does not answer. Trying again may help."""

    exit_code = 1


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the hint of an error: the nearest valid name, if one is near, and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    shown = names[:MAX_NAMES]
    if len(names) > MAX_NAMES:
        shown.append(f"and {len(names) - MAX_NAMES:,} more")
    listed = ", ".join(shown) or "none"
    if close:
        return f"did you mean {close[0]!r}? (valid: {listed})"
    return f"valid: {listed}"
