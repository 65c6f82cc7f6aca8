"""The errors that are told in one sentence: the user's, and those of the machine around."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 500  # in an error


class ConfigError(ValueError):
    """The user's input is wrong. One sentence: name, got, wanted, what to do. Commands exit with `exit_code`."""

    exit_code = 2


class UnavailableError(ConfigError):
    """Nothing is wrong with the input: the controller is away, say. What to do is, mostly, to try again."""

    exit_code = 1


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a clause that names the nearest valid name, or all of them: for the end of an error."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    shown = ", ".join(
        [
            *names[:MOST_NAMES],
            *([f"and {len(names) - MOST_NAMES:,} more"] if names[MOST_NAMES:] else []),
        ]
    )
    if close:
        return f"did you mean {close[0]!r}? (valid: {shown})"
    return f"valid: {shown or 'none'}"
