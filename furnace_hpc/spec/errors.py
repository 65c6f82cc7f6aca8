"""The one error that a user can cause, and the words it is told in."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """The user's input is wrong. One sentence: name, got, wanted, what to do. Commands exit with 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a clause that names the nearest valid name, or all of them: for the end of an error."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}? (valid: {', '.join(names)})"
    return f"valid: {', '.join(names) or 'none'}"
