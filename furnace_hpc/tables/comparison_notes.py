"""The footnotes on the comparison of rows with the reference."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.records.weights import fingerprint_of, words_of
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.reading.cache import Records
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.statistics.significance import ALPHA, format_exact_p
from furnace_hpc.tables.statistics.units import pair_up, units_of
from furnace_hpc.tables.statistics.verdicts import Verdict, pairs_to_resolve
from furnace_hpc.tables.table import Note, Row, Run, values_by_draw
from furnace_hpc.tables.text import count, list_names

NO_EXACT_TEST = "packs that share samples have no exact test"
UNEVEN = 4  # times: standard deviations that differ more are not described by one number


def comparison_notes(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """All notes on the comparison, in a fixed order."""
    yield from _bounds(grid, rows)
    yield from _single_runs(rows)
    yield from _reference(grid, rows)
    yield from _constant_differences(grid, rows)
    yield from _single_pairs(grid, rows)
    yield from _rests_on_normality(grid, rows)
    yield from _seeds_to_resolve(grid, rows)


def _bounds(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """What the differences could be if no run was missing."""
    metric = Metric(grid.metric, grid.direction)
    reference = next((row for row in rows if row.variant == grid.reference), None)
    if metric.limits is None or reference is None or not reference.n:
        return
    values = [value for row in rows for value in row.values.values()]
    if min(values) < metric.limits[0] or max(values) > metric.limits[1]:
        return  # another tool's metric of this name has another unit
    low, high = (metric.scale.show(limit) for limit in metric.limits)
    found = {}
    for row in rows:
        if row is reference or not row.n or not (row.gaps or reference.gaps):
            continue
        if row.data_sets != reference.data_sets:
            continue
        bounds = _difference_bounds(row.runs, reference.runs, metric.limits)
        least, most = (metric.scale.show(bound, signed=True) for bound in bounds)
        found[row.variant] = f"{row.variant} {least} to {most}"
    if found:
        yield Note(
            f"if missing and failed runs had values from {low} to {high}, the difference to "
            f"{grid.reference} could be: {'; '.join(found.values())}",
            tuple(found),
        )


def _difference_bounds(
    ours: Sequence[Run], theirs: Sequence[Run], limits: tuple[float, float]
) -> tuple[float, float]:
    """Lowest and highest mean difference that runs without a value can give.

    Args:
        ours: all runs of a row.
        theirs: all runs of the reference.
        limits: lowest and highest possible value of the metric.
    """

    def mean_with(runs: Sequence[Run], missing: float) -> float:
        return fmean(units_of(values_by_draw(runs, missing)))

    low, high = limits
    lowest = mean_with(ours, low) - mean_with(theirs, high)
    return lowest, mean_with(ours, high) - mean_with(theirs, low)


def weights_notes(rows: Sequence[Row], records: Records) -> Iterator[Note]:
    """Runs that began with other weights than others from the same place, or than their source."""
    found: dict[str, dict[str, list[str]]] = {}  # place -> fingerprint -> runs
    older: dict[str, list[str]] = {}  # row -> runs
    for variant, run in [(row.variant, run) for row in rows for run in row.runs]:
        spec, result = run.own_spec, run.own_result
        if spec is None or result is None:
            continue
        given = {f"init_from.{i}": one for i, one in enumerate(spec.config.init_from)}
        for key, fingerprint in result.weights_fingerprints.items():
            source = given.get(key)
            if source is None or source.run_id is None:
                place = words_of(spec.config, key)
                found.setdefault(place, {}).setdefault(fingerprint, []).append(run.run_id)
            elif _fingerprint_of_run(records, source.run_id) not in ("", fingerprint):
                older.setdefault(variant, []).append(run.run_id)
    for place, runs in found.items():
        if len(runs) > 1:
            parts = [f"{name} in {list_names(of_name)}" for name, of_name in runs.items()]
            yield Note(f"the weights of {place} differ between runs: {'; '.join(parts)}")
    if older:
        names = list_names([name for runs in older.values() for name in runs])
        yield Note(
            f"stale: the source was trained again after these runs began with its weights. It has "
            f"other weights now. `furnace submit --code new` trains these runs again: {names}",
            tuple(older),
        )


def _fingerprint_of_run(records: Records, run_id: str) -> str:
    """Fingerprint of the weights that a run has now. Empty if it is not done."""
    record = records.by_run.get(run_id)
    if record is None or record.result is None:
        return ""
    try:
        return fingerprint_of(RunResult.from_json(record.result))
    except ValueError:  # damaged
        return ""


def _single_runs(rows: Sequence[Row]) -> Iterator[Note]:
    single = tuple(row.variant for row in rows if row.n == 1)
    if single:
        yield Note("n=1: no standard deviation and no interval", single)


def _reference(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """A reference without a value, and rows with other seeds than the reference."""
    reference = next((row for row in rows if row.variant == grid.reference), None)
    if reference is None or reference.n == 0:
        yield Note(f"no differences: the reference {grid.reference} has no value")
        return
    found: dict[str, list[str]] = {}
    other = [row.variant for row in rows if row.data_sets != reference.data_sets]
    if other:
        yield Note(
            f"no difference and no verdict: other data than the reference {reference.variant}",
            tuple(other),
        )
    for row in rows:
        if row.data_sets != reference.data_sets:
            continue
        if row.n and row.values.keys() != reference.values.keys():
            found.setdefault(_common_draws(row, reference), []).append(row.variant)
    for text, variants in found.items():
        yield Note(text, tuple(variants))


def _common_draws(row: Row, reference: Row) -> str:
    """The seeds or pairs over which the difference to the reference is taken."""
    both = [draw for draw in row.values if draw in reference.values]
    if not both:
        what = f"{row.unit} and seed" if row.has_packs else "seed"
        return f"no difference to {reference.variant}: no common {what}"
    start = f"difference to {reference.variant} over"
    if row.has_packs:
        return f"{start} {len(both)} of {row.n_expected} pairs of runs, those that both rows have"
    seeds = ", ".join(str(draw.seed) for draw in both)
    noun = "seed" if len(both) == 1 else "seeds"
    return f"{start} {noun} {seeds}, which both rows have"


def _constant_differences(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """Rows whose difference to the reference is the same in every pair, so no test is possible."""
    same = tuple(row.variant for row in rows if row.difference and row.difference.is_constant)
    if same:
        yield Note(
            f"the difference to {grid.reference} is the same for every {rows[0].unit}, "
            f"so it has no interval and no p value",
            same,
        )


def _single_pairs(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    single = tuple(
        row.variant for row in rows if row.n > 1 and row.difference and row.difference.n == 1
    )
    if single:
        yield Note(f"one pair with {grid.reference} gives no interval of the difference", single)


def _rests_on_normality(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """Verdicts that the exact sign-flip test does not confirm at the corrected level."""
    compared = [row for row in rows if row.verdict]
    untested = tuple(row.variant for row in compared if _has_no_exact_test(row))
    if untested:
        yield Note(f"rests on normality: {NO_EXACT_TEST}", untested)
    family = _family(compared)
    level = ALPHA / family
    reference = next((row for row in rows if row.variant == grid.reference), None)
    found: dict[str, list[str]] = {}
    for row in compared:
        p, floor, test = _exact_test(grid, row, reference)
        if p is None or p < level:
            continue
        text = f"the exact {test} gives p {format_exact_p(p)}"
        if floor >= level:
            number = count(row.difference.n if row.difference else 0, row.unit)
            text = f"the exact {test} cannot go below p {format_exact_p(floor)} with {number}"
        found.setdefault(text, []).append(row.variant)
    for text, variants in found.items():
        needed = f"p below {format_exact_p(level)} is needed"
        if family > 1:
            needed += f" for {_family_words(compared)}"
        yield Note(f"rests on normality: {text}, and {needed}", tuple(variants))


def _has_no_exact_test(row: Row) -> bool:
    """Whether the row has a verdict from pairs that share samples, which have no exact test."""
    is_decided = row.verdict not in (None, Verdict.UNDECIDED)
    return is_decided and row.difference is not None and row.difference.shares_samples


def _exact_test(grid: Grid, row: Row, reference: Row | None) -> tuple[float | None, float, str]:
    """P of the exact test of a row's verdict, its smallest possible p, and the test's name.

    P is None if the row is undecided, or if its pairs share samples.
    """
    difference, name = row.difference, "sign-flip test"
    if difference is None or difference.sign_flip_p is None:
        return None, 0.0, name
    floor = estimates.sign_flip_floor(difference.n)
    if row.verdict in (Verdict.BETTER, Verdict.WORSE):
        return difference.sign_flip_p, floor, name
    if row.verdict is not Verdict.EQUIVALENT or grid.sesoi is None or reference is None:
        return None, 0.0, name
    bound = grid.sesoi / Metric(grid.metric, grid.direction).scale.factor
    pairs = pair_up(row.values, reference.values)
    p = estimates.sign_flip_equivalence(pairs.differences, bound)
    return p, floor / 2, f"{name} of equivalence"


def _seeds_to_resolve(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """Seeds that resolve the smallest effect of interest.

    The observed effects play no part. With them, the number would only repeat the p value.
    """
    compared = [row for row in rows if row.verdict]
    if grid.sesoi is None or not compared:
        return
    if any(row.test_per_train for row in compared):
        yield Note("more packs of the same samples would add little. Use packs that share none")
        return
    scale = Metric(grid.metric, grid.direction).scale
    differences = [row.difference for row in compared]
    found = pairs_to_resolve(differences, _family(compared), grid.sesoi / scale.factor)
    if found is None:
        return
    number, deviation = found
    effect, unit = scale.show_amount(grid.sesoi), compared[0].unit
    start = f"more than {estimates.MAX_PAIRS:,} {unit}s would be needed to resolve {effect}"
    if number is not None:
        start = f"about {count(number, unit)} resolve {effect}"
    yield Note(
        f"{start}: paired t test at 5 %, corrected for {_family_words(compared)}, "
        f"power {100 * estimates.POWER:.0f} %, pooled standard deviation of the differences "
        f"{scale.factor * deviation:.2g}{_uneven_deviations(rows, scale.factor)}"
    )


def _uneven_deviations(rows: Sequence[Row], factor: float) -> str:
    """A warning if one pooled deviation does not describe all rows. Empty if it does."""
    known = [row.difference.deviation for row in rows if row.difference and row.verdict]
    found = [deviation for deviation in known if deviation]
    if not found or max(found) < UNEVEN * min(found):
        return ""
    low, high = factor * min(found), factor * max(found)
    return (
        f". The rows' own deviations are from {low:.2g} to {high:.2g}, so a row may need far fewer "
        f"or far more"
    )


def _family(compared: Sequence[Row]) -> int:
    """Number of comparisons of the table that are corrected together."""
    return max((row.difference.family for row in compared if row.difference), default=0) or 1


def _family_words(compared: Sequence[Row]) -> str:
    """`3 rows`, or `6 comparisons` if effects of factors are corrected with the rows."""
    family = _family(compared)
    return count(family, "row" if family == len(compared) else "comparison")
