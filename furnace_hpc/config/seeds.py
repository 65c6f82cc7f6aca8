"""Combine seeds with packs.

On each pack a seed gives other initial weights and another sample order. Otherwise results on
different packs would be correlated. The intervals of a table count packs as
independent.
"""

import hashlib


def pack_seed(pack: str) -> int:
    """A stable number below 2^31 for the name of a pack."""
    return _hash(pack)


def combined_seed(of_pack: int, seed: int) -> int:
    """The seed of the training, below 2^31, for one (pack, seed)."""
    return _hash(f"{of_pack}/{seed}")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
