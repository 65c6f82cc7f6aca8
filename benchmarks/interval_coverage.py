"""Simulate how often intervals hold the true difference, and how often a null row gets a star.

python benchmarks/interval_coverage.py --simulations 2000

Each case draws the values of a reference and of other rows from a model without a difference.
The functions of the table compute differences, intervals and stars.
Goals: a 95 % interval holds the true difference in 93 to 97 % of the simulations.
At most 6 % of the tables have a star.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import record

from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.estimates import Difference
from furnace_hpc.tables.table import Draw, units_of

COVERAGE, TYPE_1 = (0.93, 0.97), 0.06
Values = dict[Draw, float]
Model = Callable[
    [np.random.Generator, int], list[Values]
]  # (generator, number of rows) -> reference and rows


@dataclass(frozen=True)
class Case:
    """A model, and the number of rows that are compared with the reference."""

    name: str
    model: Model
    rows: int = 1
    truth: float = 0.0


def draws(packs: int, seeds: int) -> list[Draw]:
    names = [f"pack{number}" for number in range(packs)] if packs > 1 else [""]
    return [Draw(name, seed) for name in names for seed in range(seeds)]


def one_pack(seeds: int, collapse: float = 0.0) -> Model:
    """Normal values around one mean. A run falls 30 points with probability `collapse`."""

    def model(generator: np.random.Generator, rows: int) -> list[Values]:
        table = generator.normal(80, 2, (rows + 1, seeds))
        table -= 30 * (generator.random((rows + 1, seeds)) < collapse)
        return [dict(zip(draws(1, seeds), row, strict=True)) for row in table]

    return model


def several_packs(packs: int, seeds: int, shares_seeds: bool) -> Model:
    """Effects of packs (sd 1, the same for all rows), weights and order (sd 1.6), run (sd 2).

    With `shares_seeds` seed s has the same weights and order on every pack.
    """

    def model(generator: np.random.Generator, rows: int) -> list[Values]:
        of_pack = generator.normal(0, 1, (1, packs, 1))
        of_seed = generator.normal(0, 1.6, (rows + 1, 1 if shares_seeds else packs, seeds))
        table = 80 + of_pack + of_seed + generator.normal(0, 2, (rows + 1, packs, seeds))
        return [dict(zip(draws(packs, seeds), row.ravel(), strict=True)) for row in table]

    return model


def few_samples(seeds: int, samples: int, sd: float) -> Model:
    """Accuracies in percent. The number of errors among `samples` has the deviation `sd`."""

    def model(generator: np.random.Generator, rows: int) -> list[Values]:
        errors = np.rint(generator.normal(0.02 * samples, sd, (rows + 1, seeds)))
        table = 100 * (1 - errors / samples)
        return [dict(zip(draws(1, seeds), row, strict=True)) for row in table]

    return model


def one_pool(packs: int, disjoint: bool) -> Model:
    """Packs of one pool of 600 points. Rows are ridge regressions with two penalties.

    The true difference is estimated once from packs of independent points.
    With `disjoint` packs share no point.
    """
    pool = 600
    size = pool // packs if disjoint else 540
    num_test = size // 3

    def value(points: np.ndarray, targets: np.ndarray, penalty: float) -> float:
        train, test = slice(num_test, None), slice(0, num_test)
        x, y = points[train], targets[train]
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
        return float(np.mean((points[test] @ weights - targets[test]) ** 2))

    def sample(generator: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        points = generator.normal(size=(number, 20))
        return points, points @ np.linspace(0, 1, 20) + generator.standard_t(3, number)

    truth = np.random.default_rng(1)
    expected = np.mean([_gap(value, *sample(truth, size)) for _ in range(20_000)])

    def model(generator: np.random.Generator, rows: int) -> list[Values]:
        points, targets = sample(generator, pool)
        order = generator.permutation(pool)
        found: list[Values] = [{}, {}]
        for number, draw in enumerate(draws(packs, 1)):
            part = (
                order[number * size : (number + 1) * size]
                if disjoint
                else generator.permutation(pool)[:size]
            )
            found[0][draw] = value(points[part], targets[part], 1.0) + expected
            found[1][draw] = value(points[part], targets[part], 100.0)
        return found

    return model


def _gap(value: Callable[..., float], points: np.ndarray, targets: np.ndarray) -> float:
    return value(points, targets, 100.0) - value(points, targets, 1.0)


CASES = (
    *(Case(f"one pack, {n} seeds", one_pack(n)) for n in (2, 3, 5, 10)),
    *(Case(f"one pack, {n} seeds, collapses", one_pack(n, 0.1)) for n in (3, 5)),
    *(
        Case(f"shared seeds, {p} packs x {s}", several_packs(p, s, True))
        for p, s in ((3, 4), (5, 1), (5, 3), (10, 3))
    ),
    *(
        Case(f"own seeds, {p} packs x {s}", several_packs(p, s, False))
        for p, s in ((3, 4), (5, 1), (5, 3), (10, 3))
    ),
    *(Case(f"one pool, {p} packs", one_pool(p, False)) for p in (3, 5, 10)),
    *(Case(f"disjoint pools, {p} packs", one_pool(p, True)) for p in (3, 5, 10)),
    *(Case(f"{rows} rows, 5 seeds", one_pack(5), rows) for rows in (3, 8, 60)),
    Case("2 seeds, accuracies differ by about 2 samples", few_samples(2, 1000, 2.0)),
    Case("5 seeds, accuracies differ by about 1 sample", few_samples(5, 1000, 1.0)),
)


def compare(rows: list[Values]) -> list[Difference | None]:
    """Differences of the other rows to the first one, as the table computes them."""
    reference = units_of(rows[0])
    return estimates.with_holm(
        [estimates.paired_difference(units_of(row), reference) for row in rows[1:]]
    )


def has_star(difference: Difference | None) -> bool:
    return difference is not None and (difference.holm_p or 1) < 0.05 and not difference.too_few


def simulate(case: Case, simulations: int) -> dict[str, object]:
    generator = np.random.default_rng(0)
    covered, given, stars = 0, 0, 0
    for _ in range(simulations):
        differences = compare(case.model(generator, case.rows))
        intervals = [d.interval for d in differences if d and d.interval]
        given += len(intervals)
        covered += sum(low <= case.truth <= high for low, high in intervals)
        stars += any(has_star(difference) for difference in differences)
    coverage, type_1 = covered / max(1, given), stars / simulations
    error = sqrt(0.05 * 0.95 / simulations)
    is_met = COVERAGE[0] <= coverage <= COVERAGE[1] and type_1 <= TYPE_1
    return {
        "case": case.name,
        "coverage": round(coverage, 3),
        "tables_with_a_star": round(type_1, 3),
        "intervals": given,
        "standard_error": round(error, 4),
        "goal": "met" if is_met else "MISSED",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    arguments = parser.parse_args()
    record.begin()
    rows = [simulate(case, arguments.simulations) for case in CASES]
    record.write(
        "interval_coverage",
        rows,
        "goals: coverage .93 to .97; a star in at most .06 of tables without a difference",
    )


if __name__ == "__main__":
    main()
