"""Which samples validate where a set's lists have no validation split."""

import hashlib
from collections.abc import Iterable
from fractions import Fraction


def num_held_out(total: int, part: float | Fraction) -> int:
    """How many of `total` samples are `part` of them, rounded; of two or more, one at least stays on each side."""
    return min(max(round(part * total), 1), total - 1) if total > 1 else 0


def drawn_by_hash(ids: Iterable[str], found: Iterable[str], part: float) -> set[str]:
    """Draw `part` of the ids that were found, exactly, in the order of their hashes.

    Of the other ids, those whose hash lies before the last one drawn are drawn too. So an id changes its side only
    where it lies at the limit, whatever is listed or found beside it.
    """
    order = sorted(map(_digest, found))
    num_drawn = num_held_out(len(order), part)
    return {name for name in ids if _digest(name) <= order[num_drawn - 1]} if num_drawn else set()


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
