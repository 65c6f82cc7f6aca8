"""Simulate how often intervals hold the true difference, and how often a null row gets a star.

python benchmarks/interval_coverage.py --simulations 2000

Each case draws results of runs from a model without a difference (or with a known one).
The functions of the product make all else: runs, training seeds, pairs, intervals, tests and stars.
Goals: a 95 % interval holds the true difference in 93 to 97 % of the simulations.
At most 6 % of the tables have a star.
Intervals over packs that share samples are conservative: they may hold it more often.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import product, repeat
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import record
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.collect import collect, difference_of
from furnace_hpc.tables.reading.cache import Records
from furnace_hpc.tables.reading.run_files import Record
from furnace_hpc.tables.statistics.estimates import Difference, paired_difference
from furnace_hpc.tables.statistics.significance import ALPHA
from furnace_hpc.tables.statistics.verdicts import Verdict, judge, with_family
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.view import View, apply_view, why_no_verdict

COVERAGE, TYPE_1 = (0.93, 0.97), 0.06
METRIC = "test/digit/accuracy"
MARKED = (Verdict.BETTER, Verdict.WORSE)
NOWHERE = GridFolder(Path("/nonexistent/study"))  # all runs are in memory
Values = NDArray[np.float64]  # [rows, packs, seeds] of accuracies; the first row is the reference
SEED_SD, RUN_SD, PACK_SD = 0.016, 0.02, 0.01
POOL = 600  # samples of the collection that packs are drawn from


@dataclass(frozen=True)
class Case:
    """A study whose results are simulated."""

    name: str
    model: "Callable[[np.random.Generator, Study], Values]"
    packs: int = 1
    seeds: int = 1
    rows: int = 1  # beside the reference
    origin: str = ""  # of the packs: empty if not known, `shared`, or `disjoint`
    resolution: float = 0.0  # 1 / number of test samples
    search: str = ""  # views that are tried for a star: `row`, or `row and seeds`
    first_look: int = 0  # seeds of a first table; the others are added if it has no star
    levels: tuple[int, int] = (0, 0)  # of two factors: rows are combinations, effects count too
    shows: str = ""  # if it shows a fault or a choice against which the product decides


class Study:
    """The runs of a case, and the files that they would have written."""

    def __init__(self, case: Case) -> None:
        self.case = case
        content: dict[str, Any] = {
            "name": "study",
            "base": {"deepspeed": "zero1"},
            "seeds": list(range(case.seeds)),
            "packs": [f"pack{number}" for number in range(case.packs)],
            "reference": "row0",
            "metric": METRIC,
            "variants": {f"row{n}": {"loss.alpha": n / 100} for n in range(case.rows + 1)},
        }
        if any(case.levels):
            content["variants"] = {
                f"row{number}": {"loss.alpha": 0.1 * alpha, "loss.beta": 0.1 * beta}
                for number, (alpha, beta) in enumerate(product(*map(range, case.levels)))
            }
        self.grid = Grid.model_validate(content)
        prints = {name: f"{number:016x}" for number, name in enumerate(self.grid.packs)}
        self.specs = expand(self.grid, prints)
        self._files = [self._result(spec) for spec in self.specs]
        self._run_ids = [spec.run_id for spec in self.specs]
        shape = (case.rows + 1, case.packs, case.seeds)
        table = self.table(np.zeros(shape))
        self._rows = [row.runs for row in table.rows]

    def differences(self, values: Values) -> list[Difference]:
        """The differences of the table of these results. It saves the time for all else."""
        reference, *others = (
            [replace(run, value=float(value)) for run, value in zip(runs, row.flat, strict=True)]
            for runs, row in zip(self._rows, values, strict=True)
        )
        of_rows = [difference_of(other, reference, self.case.resolution) for other in others]
        found = with_family(of_rows, len(others))
        return [difference for difference in found if difference]

    def table(self, values: Values, view: View | None = None) -> Ablation:
        """The table of these results."""
        records = Records(None, (), 0)  # type: ignore[arg-type]
        vars(records)["by_run"] = {
            run_id: Record(
                data=spec.config.data.name,
                fingerprint=spec.data_fingerprint,
                result=b'%s"metrics": {"%s": %r}}' % (file, METRIC.encode(), float(value)),
            )
            for run_id, spec, file, value in zip(
                self._run_ids, self.specs, self._files, values.ravel(), strict=True
            )
        }
        grid, specs, why = self.grid, self.specs, ""
        if view:
            why = why_no_verdict(grid, specs, view)
            grid, specs = apply_view(grid, specs, view)
        return collect(grid, specs, NOWHERE, records=records, why_no_verdict=why)

    def training_seeds(self) -> NDArray[np.int64]:
        """Number of the training seed of each run, [packs, seeds], as the product derives it."""
        of_row = self.specs[: self.case.packs * self.case.seeds]
        seeds = [spec.config.training_seed for spec in of_row]
        numbers = np.unique(seeds, return_inverse=True)[1]
        return numbers.reshape(self.case.packs, self.case.seeds)

    def _result(self, spec: RunSpec) -> bytes:
        """The content of result.json without its end."""
        zero = "steps selected_step num_parameters train_s wall_s samples_per_s peak_memory_gib"
        content = dict.fromkeys(zero.split(), 0) | {
            "run_id": spec.run_id,
            "variant": spec.variant,
            "seed": spec.config.seed,
            "parameters_sha256": "",
            "world_size": 1,
            "num_threads": 1,
            "attempts": 1,
            "device": "",
            "precision": "fp32",
            "zero_stage": 1,
            "data_fingerprint": spec.data_fingerprint,
            "data_origin": self._origin(spec.config.data.name),
            "code_hash": "",
            "commit": None,
            "versions": {},
        }
        return (json.dumps(content).removesuffix("}") + ", ").encode()

    def _origin(self, pack: str) -> dict[str, Any] | None:
        if not self.case.origin:
            return None
        part = ""
        if self.case.origin == "disjoint":
            part = f"{self.grid.packs.index(pack) + 1}/{self.case.packs}"
        return PackOrigin(pool="simulated", part=part, test_per_train=0.5).model_dump()


def normal(collapse: float = 0.0) -> Callable[[np.random.Generator, Study], Values]:
    """Results around one mean. A run falls 30 points with probability `collapse`."""

    def model(generator: np.random.Generator, study: Study) -> Values:
        shape = (study.case.rows + 1, study.case.packs, study.case.seeds)
        fallen = generator.random(shape) < collapse
        return np.asarray(generator.normal(0.8, RUN_SD, shape) - 0.3 * fallen)

    return model


def effects(share_seeds: bool) -> Callable[[np.random.Generator, Study], Values]:
    """Effects of packs (the same for all rows), of weights and order, and of the run.

    Runs of a row with one training seed share the effect of weights and order. With `share_seeds`
    seed s is the same on every pack, as it was before packs had seeds.
    """

    def model(generator: np.random.Generator, study: Study) -> Values:
        rows, packs, seeds = study.case.rows + 1, study.case.packs, study.case.seeds
        number = np.tile(np.arange(seeds), (packs, 1))
        if not share_seeds:
            number = study.training_seeds()
        of_seed = generator.normal(0, SEED_SD, (rows, number.max() + 1))[:, number]
        of_pack = generator.normal(0, PACK_SD, (1, packs, 1))
        return np.asarray(
            0.8 + of_pack + of_seed + generator.normal(0, RUN_SD, (rows, packs, seeds))
        )

    return model


def few_samples(samples: int, sd: float) -> Callable[[np.random.Generator, Study], Values]:
    """Accuracies on `samples` test samples. The number of errors has the deviation `sd`."""

    def model(generator: np.random.Generator, study: Study) -> Values:
        shape = (study.case.rows + 1, study.case.packs, study.case.seeds)
        errors = np.rint(generator.normal(0.02 * samples, sd, shape))
        return np.asarray(1 - errors / samples)

    return model


def one_pool(disjoint: bool) -> Callable[[np.random.Generator, Study], Values]:
    """Packs of one collection. Rows are ridge regressions with penalties 1 and 100.

    The first row gets the expected difference added, so the true difference is zero.
    Packs have 540 of the 600 points, or a part of their own. A third of a pack is test.
    """

    def model(generator: np.random.Generator, study: Study) -> Values:
        packs = study.case.packs
        size = POOL // packs if disjoint else 540
        points, targets = sample(generator, POOL)
        order = generator.permutation(POOL)
        values = np.empty((2, packs, 1))
        for number in range(packs):
            part = order[number * size : (number + 1) * size]
            if not disjoint:
                part = generator.permutation(POOL)[:size]
            values[:, number, 0] = errors_of(points[part], targets[part])
        values[0] += expected_gap(size)
        return values

    return model


def sample(generator: np.random.Generator, number: int) -> tuple[Values, Values]:
    """Points [number, 20] and targets with heavy-tailed noise."""
    points = generator.normal(size=(number, 20))
    return points, points @ np.linspace(0, 1, 20) + generator.standard_t(3, number)


def errors_of(points: Values, targets: Values) -> tuple[float, float]:
    """Test errors of both rows on one pack."""
    num_test = len(points) // 3
    x, y = points[num_test:], targets[num_test:]
    found = []
    for penalty in (1.0, 100.0):
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
        found.append(float(np.mean((points[:num_test] @ weights - targets[:num_test]) ** 2)))
    return found[0], found[1]


@cache
def expected_gap(size: int) -> float:
    """Expected difference of the rows, from 20,000 packs of independent points."""
    generator = np.random.default_rng(1)
    pairs = [errors_of(*sample(generator, size)) for _ in range(20_000)]
    return float(np.mean([second - first for first, second in pairs]))


def cases() -> Iterator[Case]:
    """All cases, in the order of the result."""
    for n in (2, 3, 5, 10):
        yield Case(f"one pack, {n} seeds", normal(), seeds=n)
    for n in (3, 5):
        yield Case(f"one pack, {n} seeds, a tenth of the runs collapses", normal(0.1), seeds=n)
    fault = "the fault: seed s is the same on every pack"
    for packs, seeds in ((3, 4), (5, 1), (5, 3), (10, 3)):
        name = f"{packs} packs x {seeds} seeds"
        yield Case(f"{name}, shared", effects(True), packs, seeds, shows=fault)
        yield Case(f"{name}, of the product", effects(False), packs, seeds)
    fault, choice = "the fault: no correction", "why disjoint packs are not corrected"
    for packs in (3, 5, 10):
        yield Case(f"{packs} packs of one pool, plain t", one_pool(False), packs, shows=fault)
        yield Case(f"{packs} packs of one pool, corrected", one_pool(False), packs, origin="shared")
        yield Case(f"{packs} disjoint packs", one_pool(True), packs, origin="disjoint")
        yield Case(
            f"{packs} disjoint packs, corrected",
            one_pool(True),
            packs,
            origin="shared",
            shows=choice,
        )
    for rows in (3, 8, 60):
        yield Case(f"{rows} rows, 5 seeds", normal(), seeds=5, rows=rows)
    for levels, n in product(((2, 2), (3, 2), (3, 3)), (3, 5, 10)):
        rows = levels[0] * levels[1]
        name = f"{levels[0]} x {levels[1]} rows, {n} seeds, with the effects of the factors"
        yield Case(name, normal(), seeds=n, rows=rows - 1, levels=levels)
    yield Case("8 rows, 5 seeds, --where the best row", normal(), seeds=5, rows=8, search="row")
    yield Case(
        "8 rows, 5 seeds, --where the best row and 4 seeds",
        normal(),
        seeds=5,
        rows=8,
        search="row and seeds",
    )
    fault = "the fault: the look is not declared"
    for first, n in ((3, 6), (5, 10)):
        name = f"one pack, {first} seeds, {n - first} more if no star"
        yield Case(name, normal(), seeds=n, first_look=first, shows=fault)
    yield Case(
        "2 seeds, accuracies differ by about 2 samples",
        few_samples(1000, 2.0),
        seeds=2,
        resolution=1e-3,
    )
    yield Case(
        "5 seeds, accuracies differ by about 1 sample",
        few_samples(1000, 1.0),
        seeds=5,
        resolution=1e-3,
    )


def searched(study: Study, values: Values, differences: list[Difference]) -> bool:
    """Whether a view of the row with the smallest p has a star, with or without one seed."""
    best = 1 + min(range(len(differences)), key=lambda number: differences[number].t_p or 1.0)
    views = [study.grid.seeds]
    if study.case.search == "row and seeds":
        views += [
            tuple(seed for seed in study.grid.seeds if seed != left_out)
            for left_out in study.grid.seeds
        ]
    for seeds in views:
        alone = paired_difference(values[best, 0, list(seeds)], values[0, 0, list(seeds)])
        if not alone or (alone.t_p or 1.0) >= ALPHA:
            continue  # it cannot have a star, and a table takes time
        where = ["variant=row0", f"variant=row{best}", *(f"seed={seed}" for seed in seeds)]
        table = study.table(values, View(where=tuple(where)))
        if any(row.verdict in MARKED for row in table.compared):
            return True
    return False


def has_mark(table: Ablation) -> bool:
    """Whether a row or an effect of a factor has a star."""
    assert table.effects
    found = [row.verdict for row in table.compared]
    found += [effect.verdict for effect in table.effects.effects]
    return any(one in MARKED for one in found)


def simulate(case: Case, simulations: int) -> dict[str, object]:
    """One line of the result."""
    generator, study = np.random.default_rng(0), Study(case)
    first, covered, given, stars = None, 0, 0, 0
    if case.first_look:
        first = Study(replace(case, seeds=case.first_look))
    for _ in range(simulations):
        values = case.model(generator, study)
        differences = study.differences(values)
        if first:
            seen = first.differences(values[:, :, : case.first_look])
            if any(judge(difference, True) in MARKED for difference in seen):
                differences = seen
        found = [difference.interval for difference in differences if difference.interval]
        given += len(found)
        covered += sum(low <= 0 <= high for low, high in found)
        if any(case.levels):
            stars += has_mark(study.table(values))
        elif case.search:
            stars += searched(study, values, differences)
        else:
            stars += any(judge(difference, True) in MARKED for difference in differences)
    coverage, type_1 = covered / max(1, given), stars / simulations
    return {
        "case": case.name,
        "coverage": round(coverage, 3),
        "tables_with_a_star": round(type_1, 3),
        "intervals": given,
        "standard_error": round(sqrt(0.05 * 0.95 / simulations), 4),
        "goal": case.shows or verdict(case, coverage, type_1),
    }


def verdict(case: Case, coverage: float, type_1: float) -> str:
    """Whether a case of the product meets the goals."""
    if type_1 > TYPE_1 or coverage < COVERAGE[0]:
        return "MISSED"
    if coverage <= COVERAGE[1]:
        return "met"
    return "met, conservative" if case.origin == "shared" else "MISSED: too wide"


def simulate_one(place: int, simulations: int) -> dict[str, Any]:
    """Simulate the case at this place."""
    return simulate(list(cases())[place], simulations)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate all cases and record the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--case", default="", help="only cases whose name contains this text")
    asked = parser.parse_args(arguments)
    record.begin()
    chosen = [place for place, case in enumerate(cases()) if asked.case in case.name]
    with ProcessPoolExecutor(initializer=threadpool_limits, initargs=(1,)) as pool:
        rows = list(pool.map(simulate_one, chosen, repeat(asked.simulations)))
    goals = "coverage .93 to .97; a star in at most .06 of tables without a difference"
    record.write("interval_coverage", rows, f"goals: {goals}; more over packs of one pool")


if __name__ == "__main__":
    main()
