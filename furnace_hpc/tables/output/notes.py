"""Footnotes of a table: everything that a reader must know before comparing its rows."""

import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from math import isfinite
from pathlib import Path

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.tables.cache import Records
from furnace_hpc.tables.costs import THEN
from furnace_hpc.tables.statistics.significance import too_few_seeds
from furnace_hpc.tables.table import Note, Row, Run

MAX_NAMED = 5  # runs that one note names; runs.csv has them all

# What should be the same in all runs of a table, for their numbers or their costs to be comparable.
COMPARED = {
    "code_hash": "code hash",
    "world_size": "world size",
    "num_threads": "threads per process",
    "device": "device",
}


def make_notes(
    grid: Grid, rows: Sequence[Row], records: Records, aside: Collection[str] = ()
) -> tuple[Note, ...]:
    """All notes of a table, in a fixed order; `aside` are the ids of the grid's runs that were not to be shown."""
    notes = [note for row in rows for note in _about_row(grid, row)]
    single = tuple(row.variant for row in rows if row.n == 1)
    if single:
        notes.append(Note("n=1: no deviation and no interval", single))
    notes += _about_reference(grid, rows)
    notes += _constant_differences(grid, rows)
    for row in rows:
        if words := too_few_seeds(row, grid.reference):
            notes.append(Note(words, (row.variant,)))
    runs = [run for row in rows for run in row.runs]
    notes += _other_data(rows)
    for field, words in COMPARED.items():
        notes += _mixed(rows, field, words)
    notes += _went_on_otherwise(rows)
    if aside:
        notes.append(Note(f"{len(aside)} runs of the grid are not shown: --where leaves them out"))
    notes += _of_other_names(rows, records)
    notes += _left_out(runs, records, aside)
    notes += _not_read(rows, records)
    return tuple(notes)


def describe(run: Run) -> str:
    """A missing run in words: its name, state and reason."""
    reason = textwrap.shorten(run.status.reason, 100, placeholder=" ...")
    return f"{run.run_id} ({run.status.state}{f': {reason}' if reason else ''})"


def _about_row(grid: Grid, row: Row) -> Iterator[Note]:
    if row.missing:
        yield Note(f"missing: {named([describe(run) for run in row.missing])}", (row.variant,))
    lacking = [run.run_id for run in row.runs if run.result and run.value is None]
    if lacking:
        yield Note(
            f"not in the mean, the result has no {grid.metric}: {named(lacking)}", (row.variant,)
        )
    diverged = [
        f"{run.run_id} ({run.value})"
        for run in row.runs
        if run.value is not None and not isfinite(run.value)
    ]
    if diverged:
        yield Note(
            f"not in the mean, {grid.metric} is not finite: {named(diverged)}", (row.variant,)
        )


def _about_reference(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    reference = next((row for row in rows if row.variant == grid.reference), None)
    if reference is None or reference.n == 0:
        yield Note(f"no difference is given: the reference {grid.reference} has no value")
        return
    for row in rows:
        if row is not reference and row.n and row.values.keys() != reference.values.keys():
            yield Note(
                f"difference to {grid.reference} {_in_common(row, reference)}", (row.variant,)
            )


def _constant_differences(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """A note on rows whose difference to the reference is the same in every pair: nothing can be tested there."""
    same = tuple(row.variant for row in rows if row.difference and row.difference.is_constant)
    if same:
        unit = "pack" if rows[0].has_packs else "seed"
        yield Note(
            f"the difference to {grid.reference} is the same in every {unit}: no interval and no p-value",
            same,
        )


def _in_common(row: Row, reference: Row) -> str:
    both = [draw for draw in row.values if draw in reference.values]
    if not both:
        return f"not given: no {'pack and ' if row.has_packs else ''}seed in common"
    if row.has_packs:
        return f"over {len(both)} of {row.n_expected} pairs of runs of one pack and one seed, which both rows have"
    return f"over seed{'s' if len(both) > 1 else ''} {', '.join(str(d.seed) for d in both)}, which both rows have"


def _other_data(rows: Sequence[Row]) -> Iterator[Note]:
    """A note on results that were measured on other data than their run was asked for."""
    other = [run for row in rows for run in row.runs if _is_of_other_data(run)]
    if other:
        names = [f"{run.run_id} ({run.result.data_fingerprint})" for run in other if run.result]
        variants = tuple(
            row.variant for row in rows if any(_is_of_other_data(run) for run in row.runs)
        )
        yield Note(
            f"data fingerprint is not the one asked for in {len(other)} runs: {named(names)}",
            variants,
        )


def _is_of_other_data(run: Run) -> bool:
    return run.result is not None and run.result.data_fingerprint != run.spec.data_fingerprint


def _mixed(rows: Sequence[Row], field: str, words: str) -> Iterator[Note]:
    """A note when results differ in `field`: runs unlike the majority are counted and named."""
    found = {
        run.run_id: str(getattr(run.result, field))
        for row in rows
        for run in row.runs
        if run.result
    }
    counts = Counter(found.values())
    if len(counts) < 2:
        return
    majority = min(counts, key=lambda value: (-counts[value], value))
    others = []
    for value in sorted(counts.keys() - {majority}):
        names = [name for name, of_run in found.items() if of_run == value]
        others.append(f"{value} in {counts[value]} of {len(found)} runs: {named(names)}")
    inside = {row.variant: {found[run.run_id] for run in row.runs if run.result} for row in rows}
    mixing = [variant for variant, values in inside.items() if len(values) > 1]
    text = f"{words} differs: {majority} in {counts[majority]} of {len(found)} runs, but {'; '.join(others)}"
    text += f"; means that mix them: {', '.join(mixing)}" if mixing else ""
    yield Note(text, tuple(variant for variant, values in inside.items() if values - {majority}))


def _went_on_otherwise(rows: Sequence[Row]) -> Iterator[Note]:
    """A note on runs that were resumed by another number of processes, or at another ZeRO stage."""
    changed = [run for row in rows for run in row.runs if THEN in run.spent.ways]
    if changed:
        names = [f"{run.run_id} ({run.spent.ways})" for run in changed]
        variants = tuple(
            row.variant for row in rows if any(THEN in run.spent.ways for run in row.runs)
        )
        yield Note(
            f"{len(changed)} runs went on otherwise than they began, which is exact up to rounding and to dropout, "
            f"whose masks are each rank's own: {named(names)}",
            variants,
        )


def _of_other_names(rows: Sequence[Row], records: Records) -> Iterator[Note]:
    """A note on runs that were trained under the name of another row or grid."""
    found = [run for row in rows for run in row.runs if run.result and run.run_id in records.links]
    if found:
        names = named([f"{run.run_id} is {_run_of(records.links[run.run_id])}" for run in found])
        variants = tuple(row.variant for row in rows if any(run in found for run in row.runs))
        yield Note(
            f"trained as another row or grid, with the same config, seed and data: {names}",
            variants,
        )


def _run_of(link: str) -> str:
    """The run that a link leads to: its name, with its grid's where that is another."""
    return "/".join(Path(link).parts[-2:])


def _left_out(runs: Sequence[Run], records: Records, aside: Collection[str]) -> Iterator[Note]:
    """A note on run folders that the grid, as last submitted, does not ask for."""
    if not runs:
        return
    ours = {run.run_id for run in runs} | set(aside)
    data = {run.spec.data_fingerprint for run in runs}
    shown_here = (
        ours | records.links.keys() | {link for run, link in records.links.items() if run in ours}
    )
    others = {
        name: of
        for name, of in records.by_run.items()
        if of.data is not None and name not in shown_here
    }
    digits = {_digits(run_id) for run_id in ours}
    if same := [name for name in others if _digits(name) in digits]:
        others = {name: of for name, of in others.items() if name not in same}
        yield Note(
            f"{len(same)} runs left out, whose config, seed and data the table has under another name: {named(same)}"
        )
    if others:
        of_data = sum(record.fingerprint not in data for record in others.values())
        why = f"not asked for any more: {of_data} on other data, {len(others) - of_data} with another config"
        yield Note(f"{len(others)} older runs left out ({why}): {named(list(others))}")
    if damaged := [
        name for name, of in records.by_run.items() if of.data is None and name not in ours
    ]:
        yield Note(f"left out, whose spec.json is missing or damaged: {named(damaged)}")


def _digits(run_id: str) -> str:
    """Seed and digits of a run, which its row's name does not change."""
    return "-".join(run_id.rsplit("-", 2)[1:])


def _not_read(rows: Sequence[Row], records: Records) -> Iterator[Note]:
    """Notes on lines that were cut off while they were written, and on files that no run has written."""
    torn = [run for row in rows for run in row.runs if run.record.torn]
    if torn:
        number = sum(run.record.torn for run in torn)
        names = named([f"{run.run_id} ({run.record.torn})" for run in torn])
        variants = tuple(row.variant for row in rows if any(run.record.torn for run in row.runs))
        yield Note(
            f"{number} torn line{'s' if number > 1 else ''} of metrics left out of the curves: {names}",
            variants,
        )
    open_ended = [run for row in rows for run in row.runs if run.result and _lacks_an_end(run)]
    if open_ended:
        variants = tuple(row.variant for row in rows if any(run in open_ended for run in row.runs))
        names = named([run.run_id for run in open_ended])
        yield Note(
            f"an attempt's record has no end or is damaged, so that its hours are not counted: {names}",
            variants,
        )
    if foreign := records.foreign:
        are = "s are" if len(foreign) > 1 else " is"
        yield Note(
            f"{len(foreign)} foreign file{are} ignored among the runs: {named(list(foreign))}"
        )


def _lacks_an_end(run: Run) -> bool:
    """Whether the ledger of a finished run, whose attempts should all have ended, does not say when they did."""
    return run.spent.goodput is None and any(
        attempt.end_unix_s is None for attempt in run.record.ledger()
    )


def named(names: list[str]) -> str:
    """Some of the names, and how many more there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
