"""Effects of factors, where the rows of a table are all combinations of the factors' levels.

An effect is a contrast inside each unit (a seed, or a pack), and then a paired t interval over the
units. So every run counts for each effect.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from furnace_hpc.tables.statistics import resampling
from furnace_hpc.tables.statistics.estimates import Difference, paired_difference
from furnace_hpc.tables.statistics.verdicts import Verdict, judge, with_family

# level of each factor -> value of each unit, in one order; level 0 is that of the reference
CellValues = Mapping[tuple[int, ...], Sequence[float]]


@dataclass(frozen=True)
class Factor:
    """Config keys whose values change together, and their values."""

    keys: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]  # values of the keys; the first are the reference's

    @property
    def name(self) -> str:
        """The keys."""
        return " and ".join(self.keys)

    def change(self, level: int) -> str:
        """A level compared with the reference's: `loss.alpha: 0 -> 0.5`."""
        parts = zip(self.keys, self.levels[0], self.levels[level], strict=True)
        return ", ".join(f"{key}: {old} -> {new}" for key, old, new in parts)


class Contrast(NamedTuple):
    """Two sides of a contrast, one value per unit. The effect is `ours` minus `theirs`."""

    name: str
    ours: list[float]
    theirs: list[float]
    is_interaction: bool = False


@dataclass(frozen=True)
class Effect:
    """A main effect or an interaction."""

    name: str
    is_interaction: bool
    difference: Difference | None  # None without a common unit
    verdict: Verdict | None = None  # None in a table without verdicts


@dataclass(frozen=True)
class FactorEffects:
    """All effects of a table whose rows are a full product of factors."""

    factors: tuple[Factor, ...]
    effects: tuple[Effect, ...]
    num_units: int  # units that all combinations have
    gaps: str = ""  # the runs without a value: `1 of 20 failed`; empty if none
    left_out: tuple[str, ...] = ()  # rows that are no part of the product


def contrasts(factors: Sequence[Factor], cells: CellValues) -> Iterator[Contrast]:
    """All main effects, and the interactions of each two factors with two levels."""
    for number, factor in enumerate(factors):
        theirs = _mean(cells, {number: 0})
        for level in range(1, len(factor.levels)):
            yield Contrast(factor.change(level), _mean(cells, {number: level}), theirs)
    for one, other in combinations(range(len(factors)), 2):
        if len(factors[one].levels) == len(factors[other].levels) == 2:
            yield _interaction(cells, one, other, f"{factors[one].name} x {factors[other].name}")


def estimate(found: Sequence[Contrast], resolution: float, test_per_train: float) -> list[Effect]:
    """The effects, not corrected for their number.

    Args:
        found: all contrasts of a table.
        resolution: smallest possible change of a value, such as one sample of a test split.
        test_per_train: n_test / n_train if packs share samples, else 0.
    """
    effects = []
    for contrast in found:
        # an interaction is a difference of two differences, so its resolution is twice as coarse
        least = resolution * (2 if contrast.is_interaction else 1)
        difference = paired_difference(contrast.ours, contrast.theirs, least)
        difference = resampling.corrected(difference, test_per_train)
        effects.append(Effect(contrast.name, contrast.is_interaction, difference))
    return effects


def judge_effects(
    effects: Sequence[Effect], higher_is_better: bool, sesoi: float | None, has_gaps: bool
) -> list[Effect]:
    """The effects with verdicts, corrected for their number. Missing runs leave all undecided."""
    corrected = with_family([effect.difference for effect in effects], len(effects), sesoi)
    found = []
    for effect, difference in zip(effects, corrected, strict=True):
        verdict = Verdict.UNDECIDED
        if not has_gaps:
            verdict = judge(difference, higher_is_better)
        found.append(replace(effect, difference=difference, verdict=verdict))
    return found


def _interaction(cells: CellValues, one: int, other: int, name: str) -> Contrast:
    """The effect of one factor at the other's level 1, minus its effect at level 0."""
    both, none = _mean(cells, {one: 1, other: 1}), _mean(cells, {one: 0, other: 0})
    first, second = _mean(cells, {one: 1, other: 0}), _mean(cells, {one: 0, other: 1})
    ours = [sum(pair) for pair in zip(both, none, strict=True)]
    return Contrast(name, ours, [sum(pair) for pair in zip(first, second, strict=True)], True)


def _mean(cells: CellValues, levels: Mapping[int, int]) -> list[float]:
    """Mean of each unit over the combinations that have these levels (factor -> level)."""
    chosen = [
        values
        for combination, values in cells.items()
        if all(combination[factor] == level for factor, level in levels.items())
    ]
    return [fmean(of_unit) for of_unit in zip(*chosen, strict=True)]
