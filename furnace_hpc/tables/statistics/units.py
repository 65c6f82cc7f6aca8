"""What mean, intervals and tests count: seeds, or packs of the data, and pairs of them.

All runs on one pack of the data share its samples and splits. So they are not independent draws of
the data. If there are several packs, each pack counts once, with the mean of its seeds.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple


class Draw(NamedTuple):
    """What is random in a run. Runs of two rows with the same draw form a pair."""

    pack: str  # pack of the data; empty if the grid does not have several
    seed: int  # seed of the training


class Pairs(NamedTuple):
    """The units that two rows have, with their values."""

    names: tuple[str, ...]  # of a pack, or of a seed
    ours: list[float]
    theirs: list[float]

    @property
    def differences(self) -> list[float]:
        """Ours minus theirs."""
        return [value - other for value, other in zip(self.ours, self.theirs, strict=True)]


def pair_up(ours: Mapping[Draw, float], theirs: Mapping[Draw, float]) -> Pairs:
    """The units over the draws that both rows have."""
    both = [draw for draw in ours if draw in theirs]
    names = dict.fromkeys(draw.pack or f"seed {draw.seed}" for draw in both)
    return Pairs(
        tuple(names),
        units_of({draw: ours[draw] for draw in both}),
        units_of({draw: theirs[draw] for draw in both}),
    )


def by_pack(values: Mapping[Draw, float]) -> list[list[float]]:
    """The values of each pack, in their order."""
    packs: dict[str, list[float]] = {}
    for draw, value in values.items():
        packs.setdefault(draw.pack, []).append(value)
    return list(packs.values())


def units_of(values: Mapping[Draw, float]) -> list[float]:
    """Independent values: one per draw, or the mean of each pack if there are several packs."""
    if any(draw.pack for draw in values):
        return [fmean(of_pack) for of_pack in by_pack(values)]
    return list(values.values())
