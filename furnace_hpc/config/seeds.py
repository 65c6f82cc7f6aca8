"""Seeds of runs on several packs of the data.

Seed s must not give the same initial weights and sample order on every pack. The results on the
packs would be correlated, and the intervals of a table count them as independent.
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
