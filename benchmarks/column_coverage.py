"""Simulate how often the intervals of optional columns and of profiles hold the true value.

python benchmarks/column_coverage.py --simulations 2000

- IQM: the interquartile mean of the distribution of runs, which is known or computed.
- P(improvement): the true share of pairs in which a row is better.
- Profile: the true share of runs above a threshold.

Goal: 93 % or more hold the true value. More than 97 % is conservative, and the captions say so.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import record
from numpy.typing import NDArray
from scipy import stats

from furnace_hpc.tables.statistics.estimates import Interval, exact_interval
from furnace_hpc.tables.statistics.profiles import Step, profile
from furnace_hpc.tables.statistics.robust import TRIMMED, interquartile_mean

GOAL, CONSERVATIVE = 0.93, 0.97
LARGE = 2_000_000  # runs from which a true interquartile mean is computed
Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Values]


@dataclass(frozen=True)
class Case:
    """A number of runs, and one interval of each study with its true value."""

    name: str
    study: Callable[[np.random.Generator], tuple[Interval | None, float]]


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Results around one mean."""
    return generator.normal(0.0, 1.0, shape)


def heavy(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Student's t with 3 degrees of freedom."""
    return generator.standard_t(3, shape)


def collapsing(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """A tenth of the runs falls 15 standard deviations."""
    return normal(generator, shape) - 15 * (generator.random(shape) < 0.1)


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Lognormal values, as losses may be."""
    return generator.lognormal(0.0, 0.5, shape)


def of_iqm(draw: Draw, packs: int, runs: int, pack_sd: float) -> Case:
    """The interquartile mean of these packs."""
    means = stats.norm.ppf((np.arange(packs) + 0.5) / packs) * pack_sd
    large = draw(np.random.default_rng(1), (LARGE // packs, packs)) + means
    true = float(stats.trim_mean(large, TRIMMED, axis=None))

    def study(generator: np.random.Generator) -> tuple[Interval | None, float]:
        values = draw(generator, (runs, packs)) + means
        found = interquartile_mean(values.T.tolist())
        assert found
        return found[1], true

    where = f"{packs} packs x {runs} runs, deviation of packs {pack_sd:g}"
    if packs == 1:
        where = f"{runs} runs"
    return Case(f"IQM, {draw.__name__}, {where}", study)


def of_improvement(share: float, pairs: int) -> Case:
    """The probability of improvement."""

    def study(generator: np.random.Generator) -> tuple[Interval | None, float]:
        return exact_interval(generator.binomial(pairs, share) / pairs, pairs), share

    return Case(f"P(improvement) of {share:g}, {pairs} pairs", study)


def of_profile(share: float, runs: int) -> Case:
    """The profile of one row at the threshold that this share of runs exceeds."""
    threshold = float(stats.norm.isf(share))

    def study(generator: np.random.Generator) -> tuple[Interval | None, float]:
        steps = profile(normal(generator, (runs,)).tolist(), higher_is_better=True)
        before = Step(-np.inf, 1.0, *exact_interval(1.0, runs))
        at = [before, *(step for step in steps if step.threshold <= threshold)][-1]
        return (at.low, at.high), share

    return Case(f"profile at a share of {share:g}, {runs} runs", study)


def cases() -> Iterator[Case]:
    """All cases, in the order of the result."""
    for draw in (normal, heavy, collapsing, skewed):
        for runs in (10, 12, 15, 20, 30):
            yield of_iqm(draw, 1, runs, 0.0)
    for packs, pack_sd in ((2, 1.0), (3, 0.5), (3, 3.0), (5, 1.0)):
        yield of_iqm(normal, packs, 10, pack_sd)
    for share in (0.5, 0.8, 0.95):
        for pairs in (3, 5, 10, 30):
            yield of_improvement(share, pairs)
    for share in (0.1, 0.5, 0.9):
        for runs in (10, 30):
            yield of_profile(share, runs)


def simulate(case: Case, simulations: int) -> dict[str, object]:
    """One line of the result."""
    generator, held, given = np.random.default_rng(0), 0, 0
    for _ in range(simulations):
        interval, true = case.study(generator)
        if interval is not None:
            given += 1
            held += interval[0] <= true <= interval[1]
    coverage = held / max(1, given)
    return {
        "case": case.name,
        "coverage": round(coverage, 3),
        "intervals": given,
        "standard_error": round(float(np.sqrt(0.05 * 0.95 / simulations)), 4),
        "goal": verdict(coverage),
    }


def verdict(coverage: float) -> str:
    """Whether a case meets the goal."""
    if coverage < GOAL:
        return "MISSED"
    return "met, conservative" if coverage > CONSERVATIVE else "met"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate all cases and record the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--case", default="", help="only cases whose name contains this text")
    asked = parser.parse_args(arguments)
    record.begin()
    rows = [simulate(case, asked.simulations) for case in cases() if asked.case in case.name]
    record.write("column_coverage", rows, "goal: coverage of .93 or more; above .97 conservative")


if __name__ == "__main__":
    main()
