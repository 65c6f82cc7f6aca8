"""Expand Slurm's short lists of array elements (`12_[0-3,7]`) and of nodes (`a[1-3,07],b2`)."""

import itertools
import math
import re

_MAX_ELEMENTS = 4_000_001  # Slurm's own bound of MaxArraySize
_MAX_NODES = 100_000
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?")  # 8, 8-12, 8-12:2
_BRACKETS = r"\[[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*\]"
_NODES = re.compile(rf"([\w.-]|{_BRACKETS})+(,([\w.-]|{_BRACKETS})+)*")
_NO_NODES = ("None assigned", "(null)", "None", "n/a")


def array_elements(job_id: str) -> list[str]:
    """List the elements of `12_[0-3,7,8-12:2%5]`, as Slurm writes those that have not started.

    An id without brackets is returned as it is. The list is empty if it cannot be read or was cut
    off.
    """
    base, bracket, rest = job_id.partition("_[")
    if not bracket:
        return [job_id]
    inside, closed, _ = rest.partition("]")
    if not closed:
        return []
    numbers = _numbers(inside.partition("%")[0], _MAX_ELEMENTS)
    return [f"{base}_{int(number)}" for number in numbers]


def node_names(nodelist: str) -> list[str]:
    """List the nodes of `a[1-3,07],b2` or `r[1-2]n[0-1]`. Empty if it cannot be read."""
    text = nodelist.strip()
    if text in _NO_NODES or not _NODES.fullmatch(text):
        return []
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        pieces = [_piece(piece) for piece in re.findall(r"\[[^\]]*\]|[^\[]+", part)]
        if len(found) + math.prod(map(len, pieces)) > _MAX_NODES:
            return []
        found += ["".join(chosen) for chosen in itertools.product(*pieces)]
    return found


def _piece(text: str) -> list[str]:
    if text.startswith("["):
        return _numbers(text[1:-1], _MAX_NODES)
    return [text]


def _numbers(ranges: str, most: int) -> list[str]:
    """List the numbers of `0-3,07`, as wide as the first of each range.

    Empty if they cannot be read, or are more than `most`.
    """
    found: list[str] = []
    for part in ranges.split(","):
        span = _SPAN.fullmatch(part)
        if not span:
            return []
        first, last, step = span[1], span[2] or span[1], span[3] or "1"
        numbers = range(int(first), int(last) + 1, int(step) or 1)
        if len(found) + len(numbers) > most:
            return []
        found += [str(number).zfill(len(first)) for number in numbers]
    return found
