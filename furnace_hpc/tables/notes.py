"""The footnotes of a table: everything that a reader must know before comparing its rows."""

import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.tables.reading.cache import Records
from furnace_hpc.tables.reading.costs import THEN
from furnace_hpc.tables.reading.run_files import Record
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.table import Ablation, Note, Row, Run
from furnace_hpc.tables.text import count, list_names

if TYPE_CHECKING:
    from furnace_hpc.tables.statistics.bootstrap import SampleComparison

# Fields of a result that should be the same in all runs, so that numbers and costs are comparable.
COMPARED = {
    "code_hash": "code hash",
    "world_size": "world size",
    "num_threads": "threads per process",
    "device": "device",
}


def make_notes(
    grid: Grid,
    rows: Sequence[Row],
    records: Records,
    excluded_ids: Collection[str] = (),
    other_table_ids: Collection[str] = (),
) -> tuple[Note, ...]:
    """All notes of a table, in a fixed order.

    Args:
        grid: the grid as the table shows it.
        rows: the rows of the table.
        records: content of all run files in the grid's folder.
        excluded_ids: runs of the grid that `--where` excludes.
        other_table_ids: runs in the folder that belong to tables with other settings.
    """
    notes = [note for row in rows for note in _values_left_out(grid, row)]
    notes += _single_runs(rows)
    notes += _reference(grid, rows)
    notes += _constant_differences(grid, rows)
    notes += _too_few_seeds(grid, rows)
    notes += _other_data(rows)
    for field, noun in COMPARED.items():
        notes += _mixed(rows, field, noun)
    notes += _resumed_differently(rows)
    if excluded_ids:
        runs = count(len(excluded_ids), "run")
        notes.append(Note(f"{runs} of the grid not shown, because --where excludes them"))
    notes += _other_names(rows, records)
    runs_shown = [run for row in rows for run in row.runs]
    notes += _left_out(runs_shown, records, {*excluded_ids, *other_table_ids})
    notes += _skipped(rows, records)
    return tuple(notes)


def sample_notes(ablation: Ablation, comparison: "SampleComparison") -> Iterator[Note]:
    """The notes of `--samples`: differences over samples, and what could not be compared."""
    from furnace_hpc.tables.statistics.bootstrap import RESAMPLES

    scale, split = ablation.metric.scale, ablation.metric.split
    found = []
    for row in comparison.differences:
        mean = scale.show(row.mean, signed=True)
        pairs = f"{count(row.n, 'pair')} of runs"
        found.append(f"{row.variant} {mean} {scale.show_interval(row.interval)} ({pairs})")
    if found:
        yield Note(
            f"difference to {ablation.grid.reference}{scale.difference_unit} over samples: "
            f"{'; '.join(found)}. Paired bootstrap over the samples of the {split} split, "
            f"{RESAMPLES:,} resamples, 95 % percentile interval. It holds for these trained "
            f"networks, not for other seeds"
        )
    if comparison.problems:
        yield Note(f"--samples: {list_names(comparison.problems)}")


def describe(run: Run) -> str:
    """Name, state and reason of a missing run."""
    reason = textwrap.shorten(run.status.reason, 100, placeholder=" ...")
    parts = [run.status.state, reason]
    return f"{run.run_id} ({': '.join(part for part in parts if part)})"


def _values_left_out(grid: Grid, row: Row) -> Iterator[Note]:
    """Runs that are missing, and runs whose value cannot be in the mean."""
    if row.missing:
        yield Note(f"missing: {list_names([describe(run) for run in row.missing])}", (row.variant,))
    lacking = [run.run_id for run in row.runs if run.result and run.value is None]
    if lacking:
        names = list_names(lacking)
        yield Note(
            f"not in the mean, because the result has no {grid.metric}: {names}", (row.variant,)
        )
    values = [(run.run_id, run.value) for run in row.runs if run.value is not None]
    infinite = [f"{run_id} ({value})" for run_id, value in values if not isfinite(value)]
    if infinite:
        names = list_names(infinite)
        yield Note(f"not in the mean, because {grid.metric} is not finite: {names}", (row.variant,))


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
    for row in rows:
        if row.n and row.values.keys() != reference.values.keys():
            yield Note(_common_draws(row, reference), (row.variant,))


def _common_draws(row: Row, reference: Row) -> str:
    """The seeds or pairs over which the difference to the reference is taken."""
    both = [draw for draw in row.values if draw in reference.values]
    if not both:
        what = "pack and seed" if row.has_packs else "seed"
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
            f"the difference to {grid.reference} is the same for every {_unit(rows[0])}, "
            f"so it has no interval and no p value",
            same,
        )


def _too_few_seeds(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """Rows whose interval contains zero, and how many more seeds would show such a difference."""
    for row in rows:
        text = _more_seeds(row, grid.reference)
        if text:
            yield Note(text, (row.variant,))


def _more_seeds(row: Row, reference: str) -> str:
    """The seeds that the row needs.

    Empty if the difference is shown, or no number of seeds would do.
    """
    difference, unit = row.difference, _unit(row)
    if difference is None or not difference.too_few or difference.is_constant:
        return ""
    start = f"too few {unit}s to show a difference to {reference}"
    if difference.interval is None:
        return f"{start}: one pair gives no interval"
    if not difference.effect:  # the mean difference is zero
        return ""
    if row.test_per_train:
        return (
            f"{start}: more packs of the same samples would add little. Use packs that share none"
        )
    test = f"paired t test at 5 %, power {100 * estimates.POWER:.0f} %"
    if difference.more_seeds is None:
        return f"{start} of this size: even {estimates.MAX_SEEDS:,} would not be enough ({test})"
    more = count(difference.more_seeds, f"more {unit}")
    return f"{start} of this size: needs about {more} ({test})"


def _unit(row: Row) -> str:
    """What the tests count."""
    if row.has_packs:
        return "pack"
    return "seed"


def _other_data(rows: Sequence[Row]) -> Iterator[Note]:
    """Results that were measured on other data than the run's spec names."""
    names = []
    for run in _finished(rows):
        if _has_other_data(run) and run.result:
            names.append(f"{run.run_id} ({run.result.data_fingerprint})")
    if names:
        yield Note(
            f"other data than planned in {count(len(names), 'run')}, by fingerprint: "
            f"{list_names(names)}",
            _rows_with(rows, _has_other_data),
        )


def _has_other_data(run: Run) -> bool:
    return run.result is not None and run.result.data_fingerprint != run.spec.data_fingerprint


def _mixed(rows: Sequence[Row], field: str, noun: str) -> Iterator[Note]:
    """Runs that differ from most others in a field of the result."""
    found = {run.run_id: str(getattr(run.result, field)) for run in _finished(rows)}
    counts = Counter(found.values())
    if len(counts) < 2:
        return
    majority = min(counts, key=lambda value: (-counts[value], value))
    others = []
    for value in sorted(counts.keys() - {majority}):
        names = list_names([name for name, of_run in found.items() if of_run == value])
        others.append(f"{value} in {counts[value]} of {len(found)} runs: {names}")
    text = (
        f"{noun} differs: {majority} in {counts[majority]} of {len(found)} runs, "
        f"but {'; '.join(others)}"
    )
    values = {row.variant: {found[run.run_id] for run in _finished([row])} for row in rows}
    mixed = [variant for variant, of_row in values.items() if len(of_row) > 1]
    if mixed:
        text += f". Rows that average over different values: {', '.join(mixed)}"
    yield Note(text, tuple(variant for variant, of_row in values.items() if of_row - {majority}))


def _resumed_differently(rows: Sequence[Row]) -> Iterator[Note]:
    """Runs that were resumed with another number of processes, or another ZeRO stage."""
    names = []
    for row in rows:
        names += [f"{run.run_id} ({run.spent.ways})" for run in row.runs if _has_changed(run)]
    if names:
        yield Note(
            f"{count(len(names), 'run')} resumed with another number of processes or another "
            f"DeepSpeed file, so not bit-identical (rounding, dropout masks): {list_names(names)}",
            _rows_with(rows, _has_changed),
        )


def _has_changed(run: Run) -> bool:
    return THEN in run.spent.ways


def _other_names(rows: Sequence[Row], records: Records) -> Iterator[Note]:
    """Runs that were trained under the name of another row or grid."""

    def is_adopted(run: Run) -> bool:
        return run.result is not None and run.run_id in records.links

    names = []
    for row in rows:
        for run in filter(is_adopted, row.runs):
            # the target's last two parts: its grid, if that is another one, and its run
            target = "/".join(Path(records.links[run.run_id]).parts[-2:])
            names.append(f"{run.run_id} is {target}")
    if names:
        yield Note(
            f"trained as another row or grid, with the same config, seed and data: "
            f"{list_names(names)}",
            _rows_with(rows, is_adopted),
        )


def _left_out(runs: Sequence[Run], records: Records, known_ids: Collection[str]) -> Iterator[Note]:
    """Run folders that the table leaves out, for other reasons than those of `known_ids`."""
    if not runs:
        return
    ours = {run.run_id for run in runs} | set(known_ids)
    targets = {link for run, link in records.links.items() if run in ours}
    shown = ours | targets | records.links.keys()
    others = {name: record for name, record in records.by_run.items() if name not in shown}
    damaged = [
        name for name, record in records.by_run.items() if record.data is None and name not in ours
    ]
    sound = {name: record for name, record in others.items() if record.data is not None}
    seeds_and_hashes = {_seed_and_hash(run_id) for run_id in ours}
    same = [name for name in sound if _seed_and_hash(name) in seeds_and_hashes]
    if same:
        yield Note(
            f"{count(len(same), 'run')} left out, because the table has the same config, seed and "
            f"data under another name: {list_names(same)}"
        )
    yield from _of_older_grids({name: sound[name] for name in sound if name not in same}, runs)
    if damaged:
        yield Note(f"left out, because spec.json is missing or damaged: {list_names(damaged)}")


def _of_older_grids(others: dict[str, Record], runs: Sequence[Run]) -> Iterator[Note]:
    """Runs that the grid had in an earlier version."""
    if not others:
        return
    data = {run.spec.data_fingerprint for run in runs}
    other_data = sum(record.fingerprint not in data for record in others.values())
    parts = {"on other data": other_data, "with another config": len(others) - other_data}
    numbers = ", ".join(f"{number} {words}" for words, number in parts.items() if number)
    yield Note(
        f"{count(len(others), 'older run')} left out, because the grid no longer contains them "
        f"({numbers}): {list_names(list(others))}"
    )


def _seed_and_hash(run_id: str) -> str:
    """The part of a run id that does not depend on the row's name."""
    return "-".join(run_id.rsplit("-", 2)[1:])


def _skipped(rows: Sequence[Row], records: Records) -> Iterator[Note]:
    """Incomplete lines, attempts without an end, and files that no run has written."""
    torn = {run.run_id: run.record.torn for row in rows for run in row.runs if run.record.torn}
    if torn:
        names = list_names([f"{run_id} ({number})" for run_id, number in torn.items()])
        lines = count(sum(torn.values()), "incomplete line")
        yield Note(
            f"{lines} of metrics skipped in the curves: {names}",
            _rows_with(rows, lambda run: bool(run.record.torn)),
        )
    without_end = [run.run_id for run in _finished(rows) if _lacks_an_end(run)]
    if without_end:
        yield Note(
            f"hours of an attempt not counted, because its record is damaged or has no end: "
            f"{list_names(without_end)}",
            _rows_with(rows, lambda run: run.result is not None and _lacks_an_end(run)),
        )
    if foreign := records.foreign:
        yield Note(
            f"ignored {count(len(foreign), 'file')} that no run has written: {list_names(foreign)}"
        )


def _lacks_an_end(run: Run) -> bool:
    """Whether an attempt has no end. Those of a finished run should all have one."""
    return run.spent.goodput is None and any(
        attempt.end_unix_s is None for attempt in run.record.ledger()
    )


def _finished(rows: Sequence[Row]) -> list[Run]:
    return [run for row in rows for run in row.runs if run.result]


def _rows_with(rows: Sequence[Row], condition: Callable[[Run], bool]) -> tuple[str, ...]:
    """The rows that have a run with this condition."""
    return tuple(row.variant for row in rows if any(map(condition, row.runs)))
