"""Effects of factors, where the rows of a table are all combinations of the factors' levels.

An effect is a contrast inside each unit (a seed, or a pack), and then a paired t interval over the
units. So every run counts for each effect. interactions.py has the test of a whole interaction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from operator import sub
from statistics import fmean
from typing import NamedTuple

from furnace_hpc.tables.statistics import resampling
from furnace_hpc.tables.statistics.estimates import Difference, paired_difference
from furnace_hpc.tables.statistics.interactions import CellValues, Omnibus, omnibus_test
from furnace_hpc.tables.statistics.verdicts import Verdict, judge

# Contrasts of one interaction. A larger one has only its test, because so many intervals would
# widen all others.
MAX_CONTRASTS = 4


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
    of_units: tuple[float, ...] = ()  # the effect in each unit


@dataclass(frozen=True)
class FactorEffects:
    """All effects of a table whose rows are a full product of factors, or contain 2 x 2 parts."""

    factors: tuple[Factor, ...]  # empty if the rows only contain 2 x 2 parts
    effects: tuple[Effect, ...]
    num_units: int  # units that all combinations have
    gaps: str = ""  # the runs without a value: `1 of 20 failed`; empty if none
    left_out: tuple[str, ...] = ()  # rows that are no part of the product
    tests: tuple[Omnibus, ...] = ()  # of interactions with several contrasts

    @property
    def are_judged(self) -> bool:
        """Whether they have verdicts."""
        return any(effect.verdict for effect in self.effects)

    @property
    def num_comparisons(self) -> int:
        """Intervals and tests, which are corrected together with those of the rows."""
        return len(self.effects) + len(self.tests)

    @property
    def without_contrasts(self) -> list[str]:
        """Interactions that have a test and no intervals."""
        return [test.name for test in self.tests if test.num_contrasts > MAX_CONTRASTS]


def contrasts(factors: Sequence[Factor], cells: CellValues) -> Iterator[Contrast]:
    """All main effects, and the contrasts of each interaction of two factors."""
    for number, factor in enumerate(factors):
        theirs = _mean(cells, {number: 0})
        for level in range(1, len(factor.levels)):
            yield Contrast(factor.change(level), _mean(cells, {number: level}), theirs)
    for one, other in combinations(range(len(factors)), 2):
        first, second = factors[one], factors[other]
        pairs = list(product(range(1, len(first.levels)), range(1, len(second.levels))))
        if len(pairs) > MAX_CONTRASTS:
            continue
        for levels in pairs:
            name = f"{first.name} x {second.name}"
            if len(pairs) > 1:
                name = f"{first.change(levels[0])} x {second.change(levels[1])}"
            yield _interaction(cells, one, other, name, levels)


def part_contrast(name: str, cells: CellValues) -> Contrast:
    """The interaction in a 2 x 2 part of a table."""
    return _interaction(cells, 0, 1, name)


def omnibus_tests(
    factors: Sequence[Factor], cells: CellValues, resolution: float, test_per_train: float
) -> Iterator[Omnibus]:
    """One test for each interaction of two factors that has several contrasts."""
    for one, other in combinations(range(len(factors)), 2):
        levels = len(factors[one].levels), len(factors[other].levels)
        if levels == (2, 2):  # its t test is the same test
            continue
        means = [
            [_mean(cells, {one: first, other: second}) for second in range(levels[1])]
            for first in range(levels[0])
        ]
        name = f"{factors[one].name} x {factors[other].name}"
        yield omnibus_test(name, means, resolution, test_per_train)


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
        of_units = tuple(map(sub, contrast.ours, contrast.theirs))
        effects.append(
            Effect(contrast.name, contrast.is_interaction, difference, of_units=of_units)
        )
    return effects


def judge_effects(
    found: FactorEffects,
    corrected: Sequence[Difference | None],
    holm_p: Sequence[float],
    higher_is_better: bool,
) -> FactorEffects:
    """The effects with verdicts. Missing runs leave all undecided.

    Args:
        found: the effects of a table.
        corrected: their differences, corrected for all comparisons of the table.
        holm_p: corrected p values of the tests that have one.
        higher_is_better: whether higher values of the metric are better.
    """
    effects = []
    for effect, difference in zip(found.effects, corrected, strict=True):
        verdict = Verdict.UNDECIDED
        if not found.gaps:
            verdict = judge(difference, higher_is_better)
        effects.append(replace(effect, difference=difference, verdict=verdict))
    of_tests = iter(holm_p)
    tests = [
        test if test.p is None else replace(test, holm_p=next(of_tests)) for test in found.tests
    ]
    return replace(found, effects=tuple(effects), tests=tuple(tests))


def _interaction(
    cells: CellValues, one: int, other: int, name: str, levels: tuple[int, int] = (1, 1)
) -> Contrast:
    """The effect of one factor's level at the other's level, minus its effect at level 0."""
    first_level, second_level = levels
    both = _mean(cells, {one: first_level, other: second_level})
    none = _mean(cells, {one: 0, other: 0})
    first = _mean(cells, {one: first_level, other: 0})
    second = _mean(cells, {one: 0, other: second_level})
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
