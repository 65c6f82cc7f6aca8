"""Choose validation samples for sets without a validation split."""

import hashlib
from collections.abc import Iterable
from fractions import Fraction


def num_held_out(total: int, part: float | Fraction) -> int:
    """Return the rounded `part` of `total` samples, at least one on each side if there are two."""
    if total < 2:
        return 0
    return min(max(round(part * total), 1), total - 1)


def drawn_by_hash(ids: Iterable[str], found: Iterable[str], part: float) -> set[str]:
    """Draw exactly `part` of the found ids, in the order of their hashes.

    Other ids with a smaller hash than the last one drawn are drawn too. So if files are added
    later, only ids near this limit change their split.
    """
    order = sorted(map(_digest, found))
    num_drawn = num_held_out(len(order), part)
    if num_drawn == 0:
        return set()
    limit = order[num_drawn - 1]
    return {name for name in ids if _digest(name) <= limit}


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
