"""The footnotes of a table: everything that a reader must know before comparing its rows."""

import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.sections.batch import AUTO
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.state import RunState
from furnace_hpc.tables.comparison_notes import comparison_notes, weights_notes
from furnace_hpc.tables.reading.cache import Records
from furnace_hpc.tables.reading.costs import THEN, WIDE, wide_range
from furnace_hpc.tables.reading.run_files import Record
from furnace_hpc.tables.table import Ablation, Note, Row, Run
from furnace_hpc.tables.text import count, list_names

if TYPE_CHECKING:
    from furnace_hpc.tables.reading.samples import SampleComparison

# Fields of a result that should be the same in all runs, so that numbers and costs are comparable.
COMPARED = {
    "code_hash": "code hash",
    "world_size": "world size",
    "num_threads": "threads per process",
    "device": "device",
}
# title of a column -> cost of one run
RUN_COSTS: dict[str, Callable[[RunResult], float]] = {
    "train (s)": lambda result: result.train_s,
    "wall (s)": lambda result: result.wall_s,
    "samples/s": lambda result: result.samples_per_s / result.world_size,
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
    notes = notes_of_values(grid, rows)
    notes += _uneven_costs(rows)
    notes += _other_data(rows)
    for field, noun in COMPARED.items():
        notes += _mixed(rows, field, noun)
    notes += weights_notes(rows, records)
    notes += _resumed_differently(rows)
    notes += _halved(rows)
    notes += _auto_micro_batch(rows)
    notes += _stopped_early(rows)
    if excluded_ids:
        runs = count(len(excluded_ids), "run")
        notes.append(Note(f"{runs} of the grid not shown, because --where excludes them"))
    if grid.sources:
        names = list_names(grid.sources)
        notes.append(Note(f"left out, because these rows only give weights to others: {names}"))
    notes += _other_names(rows, records)
    runs_shown = [run for row in rows for run in row.runs]
    notes += _left_out(runs_shown, records, {*excluded_ids, *other_table_ids})
    notes += _skipped(rows, records)
    return tuple(notes)


def notes_of_values(grid: Grid, rows: Sequence[Row]) -> list[Note]:
    """The notes on values and differences, which need no files of runs."""
    notes = [*_values_left_out(grid, rows)]
    notes += comparison_notes(grid, rows)
    return notes


def sample_notes(ablation: Ablation, comparison: "SampleComparison") -> Iterator[Note]:
    """The notes of `--samples`: differences over samples, and what could not be compared."""
    from furnace_hpc.tables.statistics.bootstrap import RESAMPLES

    scale, split = ablation.metric.scale, ablation.metric.split
    found = []
    for row in comparison.differences:
        low, high = row.interval
        precise = scale.for_deviation((high - low) / 4, row.mean)
        mean = precise.show(row.mean, signed=True)
        pairs = f"{count(row.n, 'pair')} of runs"
        found.append(f"{row.variant} {mean} {precise.show_interval(row.interval)} ({pairs})")
    if found:
        yield Note(
            f"difference to {ablation.grid.reference}{scale.difference_unit} over samples: "
            f"{'; '.join(found)}. Paired bootstrap over the samples of the {split} split, "
            f"{RESAMPLES:,} resamples, 95 % percentile interval, not corrected for the number of "
            f"rows. It holds for these trained networks, not for other seeds"
        )
    if comparison.problems:
        yield Note(f"--samples: {list_names(comparison.problems)}")


def describe(run: Run) -> str:
    """Name, state and reason of a missing run."""
    reason = textwrap.shorten(run.status.reason, 100, placeholder=" ...")
    parts = [run.status.state, reason]
    if run.own_spec is None and run.status.state is RunState.NEW:
        parts = [reason]  # of another tool
    return f"{run.run_id} ({': '.join(part for part in parts if part)})"


def _values_left_out(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """Runs that are missing, and runs whose value cannot be in the mean. One note for each kind."""
    kinds: dict[str, dict[str, str]] = {
        "missing": {},
        f"not in the mean, because the result has no {grid.metric}": {},
        f"not in the mean, because {grid.metric} is not finite": {},
    }
    for row in rows:
        lacking = [run.run_id for run in row.runs if run.result and run.value is None]
        values = [(run.run_id, run.value) for run in row.runs if run.value is not None]
        infinite = [f"{run_id} ({value})" for run_id, value in values if not isfinite(value)]
        missing = [describe(run) for run in row.missing]
        for found, names in zip(kinds.values(), (missing, lacking, infinite), strict=True):
            if names:
                found[row.variant] = list_names(names)
    for kind, found in kinds.items():
        if found:
            yield Note(f"{kind}: {'; '.join(found.values())}", tuple(found))


def _uneven_costs(rows: Sequence[Row]) -> Iterator[Note]:
    """Rows whose runs differ much in cost, for example because a node was busy."""
    results = [[run.own_result for run in row.runs if run.own_result] for row in rows]
    for title, cost_of in RUN_COSTS.items():
        found = {}
        for row, of_row in zip(rows, results, strict=True):
            limits = wide_range([cost_of(result) for result in of_row])
            if limits:
                found[row.variant] = f"{row.variant} {limits[0]:.1f} to {limits[1]:.1f}"
        if found:
            yield Note(
                f"{title} differs by more than {WIDE:g} times between the runs of a row, so the "
                f"median may mislead: {list_names(list(found.values()))}",
                tuple(found),
            )


def _other_data(rows: Sequence[Row]) -> Iterator[Note]:
    """Results that were measured on other data than the run's spec names."""
    names = []
    for run in _finished(rows):
        if _has_other_data(run) and run.own_result:
            names.append(f"{run.run_id} ({run.own_result.data_fingerprint})")
    if names:
        yield Note(
            f"other data than planned in {count(len(names), 'run')}, by fingerprint: "
            f"{list_names(names)}",
            _rows_with(rows, _has_other_data),
        )


def _has_other_data(run: Run) -> bool:
    spec, result = run.own_spec, run.own_result
    if spec is None or result is None:
        return False
    return result.data_fingerprint != spec.data_fingerprint


def _mixed(rows: Sequence[Row], field: str, noun: str) -> Iterator[Note]:
    """Runs that differ from most others in a field of the result."""
    finished = _finished(rows)
    if len({getattr(run.result, field) for run in finished}) < 2:
        return
    found = {run.run_id: str(getattr(run.result, field)) for run in finished}
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
        names += [f"{run.run_id} ({run.spent.setups})" for run in row.runs if _has_changed(run)]
    if names:
        yield Note(
            f"{count(len(names), 'run')} resumed with another number of processes or another "
            f"DeepSpeed file or micro-batch, so not bit-identical (rounding, dropout masks): "
            f"{list_names(names)}",
            _rows_with(rows, _has_changed),
        )


def _halved(rows: Sequence[Row]) -> Iterator[Note]:
    """Runs that continued with half the micro-batch, because they were out of memory."""
    names = []
    for row in rows:
        for run in row.runs:
            names += [f"{run.run_id} ({text})" for text in _halvings(run)]
    if names:
        yield Note(
            f"out of memory, so the micro-batch was halved at the same global batch (other "
            f"rounding and dropout masks): {list_names(names)}",
            _rows_with(rows, lambda run: bool(_halvings(run))),
        )


def _halvings(run: Run) -> list[str]:
    return [
        f"to {attempt.next_overrides.get('micro_batch_size')} after step {attempt.step}"
        for attempt in run.record.ledger()
        if attempt.reason == "oom_halved"
    ]


def _auto_micro_batch(rows: Sequence[Row]) -> Iterator[Note]:
    """Runs of `micro_batch_size: auto` for which other sizes were chosen."""
    found: dict[int, list[str]] = {}
    for run in _finished(rows):
        size = _chosen_size(run)
        if size is not None:
            found.setdefault(size, []).append(run.run_id)
    if len(found) > 1:
        parts = [
            f"{size} in {count(len(names), 'run')} ({list_names(names)})"
            for size, names in sorted(found.items())
        ]
        yield Note(
            f"micro_batch_size auto chose different sizes, so rounding and dropout masks differ: "
            f"{'; '.join(parts)}",
            _rows_with(rows, lambda run: _chosen_size(run) is not None),
        )


def _stopped_early(rows: Sequence[Row]) -> Iterator[Note]:
    """Rows with runs that early stopping has ended, so rows differ in training length."""
    found = {}
    for row in rows:
        results = [run.own_result for run in row.runs]
        steps = sorted(result.steps for result in results if result and result.stopped_early)
        if steps:
            at = f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"
            found[row.variant] = f"{row.variant} {len(steps)} of {len(row.runs)} runs, at {at}"
    if found:
        yield Note(
            f"stopped early, so the lengths of training differ: {list_names(list(found.values()))}",
            tuple(found),
        )


def _chosen_size(run: Run) -> int | None:
    """The micro-batch of a finished run whose config leaves it to the engine. Otherwise None."""
    spec, result = run.own_spec, run.own_result
    if spec is None or result is None or spec.config.micro_batch_size != AUTO:
        return None
    return result.micro_batch_size


def _has_changed(run: Run) -> bool:
    return THEN in run.spent.setups


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
    twins = {*same}
    yield from _of_older_grids({name: sound[name] for name in sound if name not in twins}, runs)
    if damaged:
        yield Note(f"left out, because spec.json is missing or damaged: {list_names(damaged)}")


def _of_older_grids(others: dict[str, Record], runs: Sequence[Run]) -> Iterator[Note]:
    """Runs that the grid had in an earlier version."""
    if not others:
        return
    data = {run.own_spec.data_fingerprint for run in runs if run.own_spec}
    other_data = sum(record.fingerprint not in data for record in others.values())
    parts = {"on other data": other_data, "with another config": len(others) - other_data}
    numbers = ", ".join(f"{number} {words}" for words, number in parts.items() if number)
    them = "it" if len(others) == 1 else "them"
    yield Note(
        f"{count(len(others), 'older run')} left out, because the grid no longer contains {them} "
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
