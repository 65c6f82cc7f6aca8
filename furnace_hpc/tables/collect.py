"""Collecting: every run of a grid with what is known of it, and what the runs of a row say together."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.identity import identity
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.config.train_config import RunSpec, TrainConfig, run_ids
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.state import RunState, RunStatus, read_status
from furnace_hpc.tables.cache import Records, read_records
from furnace_hpc.tables.costs import spent_of
from furnace_hpc.tables.output.notes import make_notes
from furnace_hpc.tables.run_files import Record, read_record
from furnace_hpc.tables.statistics import estimates
from furnace_hpc.tables.table import (
    Ablation,
    Change,
    Draw,
    Row,
    Run,
    several_packs,
    units_of,
    values_by_draw,
)

WORDS = {True: "on", False: "off", None: "none"}
HowItIs = Callable[[RunFolder], RunStatus]  # by its files alone, or with what Slurm says on top


def collect(
    grid: Grid,
    runs: list[RunSpec],
    folder: GridFolder,
    get_status: HowItIs = read_status,
    by: tuple[str, ...] = (),
    aside: Collection[str] = (),
    records: Records | None = None,
) -> Ablation:
    """The table of `runs`, from what lies in `folder` now: a row a variant, or one for the values of the keys `by`.

    `aside` are the ids of the grid's runs that are not to be shown; `records` is what has been read of `folder`.

    Raises:
        ConfigError: there are results, and none has the grid's metric.
    """
    records = read_records(folder) if records is None else records
    named: dict[str, list[Run]] = {}
    for spec, run_id in zip(runs, run_ids(runs), strict=True):
        run = as_it_is(
            spec, folder.run(run_id), records.by_run.get(run_id, Record()), grid, get_status
        )
        named.setdefault(row_name(spec, by), []).append(run)
    _check_metric(grid, [run.result for row in named.values() for run in row if run.result])
    reference = named.get(grid.reference, [])
    config = dict(_flat(identity(reference[0].spec.config))) if reference else {}
    rows = _corrected([_row(name, row, reference, config, by) for name, row in named.items()])
    return Ablation(grid, rows, make_notes(grid, rows, records, aside), records)


def as_it_is(
    spec: RunSpec, folder: RunFolder, record: Record, grid: Grid, get_status: HowItIs = read_status
) -> Run:
    """What is known of one run. A result that cannot be used makes it missing, with the reason."""
    record, result, status = _believed(folder, record, get_status)
    value = result.metrics.get(grid.metric) if result else None
    draw = Draw(spec.config.data.name if several_packs(grid) else "", spec.config.seed)
    return Run(spec, folder, status, result, value, draw, spent_of(record, result), record)


def _believed(
    folder: RunFolder, record: Record, get_status: HowItIs
) -> tuple[Record, RunResult | None, RunStatus]:
    if record.result is None:
        status = get_status(folder)
        # it has ended since its files were read: done, not missing
        if status.state is RunState.DONE:
            record = read_record(folder)
        if record.result is None:
            if folder.path.is_symlink() and not folder.path.exists():
                status = _unusable(
                    status,
                    f"its folder was a link to {folder.path.readlink()}, which is gone: submit again",
                )
            return record, None, status
    try:
        result = RunResult.model_validate_json(record.result.decode("utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        return record, None, _unusable(get_status(folder), _why_unreadable(error))
    if result.run_id != folder.run_id and not _is_of_another_name(folder, result):
        return (
            record,
            None,
            _unusable(get_status(folder), f"result.json is that of {result.run_id}"),
        )
    return record, result, RunStatus(RunState.DONE, result.attempts, result.steps, "")


def _is_of_another_name(folder: RunFolder, result: RunResult) -> bool:
    """Whether the folder is a link to the folder of the run that the result names, of the same seed and digits."""
    digits = folder.run_id.rsplit("-", 2)[1:] == result.run_id.rsplit("-", 2)[1:]
    return digits and folder.path.is_symlink() and folder.path.readlink().name == result.run_id


def row_name(spec: RunSpec, by: tuple[str, ...]) -> str:
    """The row in which a run is shown: its variant, or the values that it has for the keys `by`."""
    if not by:
        return spec.variant
    values = flat_config(spec)
    return ", ".join(f"{key}={word(values.get(key))}" for key in by)


def flat_config(spec: RunSpec) -> dict[str, Any]:
    """Dotted key -> value of what decides the run's numbers, and its variant."""
    return {"variant": spec.variant, "seed": spec.config.seed, **dict(_flat(identity(spec.config)))}


def word(value: object) -> str:
    """A value of a config as text, another text for each other value: rows, `--where` and CSV cells are known by it.

    Numbers have the fewest digits that read back as the same number: 0.5 is `0.5`, 0.001234561 is `0.001234561`.
    Words that would read as another value are quoted.
    """
    if isinstance(value, bool) or value is None:
        return WORDS[value]
    if isinstance(value, list):
        return "+".join(json.dumps(item) if "+" in str(item) else word(item) for item in value)
    if isinstance(value, float):
        short = f"{value + 0.0:g}"  # + 0.0 against "-0"
        return short if float(short) == value else repr(value)
    text = str(value)
    is_plain = not isinstance(value, str) or (text.isprintable() and not _is_ambiguous(text))
    return text if is_plain else printable(json.dumps(text, ensure_ascii=not text.isprintable()))


def as_number(text: str) -> float | None:
    """The number that a text is; None if it is no number."""
    try:
        return float(text)
    except ValueError:
        return None


def _is_ambiguous(text: str) -> bool:
    return text in WORDS.values() or as_number(text) is not None or '"' in text or ", " in text


def differences(config: TrainConfig, reference: TrainConfig) -> tuple[Change, ...]:
    """The dotted identity keys in which two configs differ, without the seed; what one lacks is None."""
    return _changes(dict(_flat(identity(config))), dict(_flat(identity(reference))))


def _changes(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Change, ...]:
    keys = [key for key in theirs | ours if key != "seed"]
    changes = [Change(key, theirs.get(key), ours.get(key)) for key in keys]
    return tuple(change for change in changes if change.reference != change.value)


def _unusable(status: RunStatus, reason: str) -> RunStatus:
    return RunStatus(RunState.UNKNOWN, status.attempt, status.step, reason)


def _why_unreadable(error: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError) or error.errors()[0]["type"] == "json_invalid":
        return "result.json is half-written or damaged: remove it, and submit again"
    return "result.json was written by another version of the code"


def _row(
    variant: str, runs: list[Run], reference: list[Run], config: dict[str, Any], by: tuple[str, ...]
) -> Row:
    """One row; `config` is the reference's, flat."""
    if not reference:
        return Row(variant, tuple(runs), (), None)
    changes = _changes(dict(_flat(identity(runs[0].spec.config))), config)
    if by:  # in the other keys the runs of one row differ among themselves
        changes = tuple(change for change in changes if change.key in by)
    if runs is reference:
        return Row(variant, tuple(runs), changes, None)
    ours, theirs = values_by_draw(runs), values_by_draw(reference)
    both = [draw for draw in ours if draw in theirs]
    difference = estimates.paired_difference(
        *(units_of({draw: of[draw] for draw in both}) for of in (ours, theirs))
    )
    return Row(variant, tuple(runs), changes, difference)


def _corrected(rows: list[Row]) -> tuple[Row, ...]:
    """The rows, each p-value corrected for how many rows are compared with the reference."""
    corrected = estimates.with_holm([row.difference for row in rows])
    return tuple(
        replace(row, difference=difference) for row, difference in zip(rows, corrected, strict=True)
    )


def _check_metric(grid: Grid, results: list[RunResult]) -> None:
    names = {name for result in results for name in result.metrics}
    if results and grid.metric not in names:
        raise ConfigError(
            f"grid {grid.name!r}: metric {grid.metric!r} is in no result; {nearest(grid.metric, names)}: "
            f"name one of them under `metric`"
        )


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value); an entry of a list of mappings is counted from 0."""
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
