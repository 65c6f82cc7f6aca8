"""Collect the runs of a grid and compare the rows of its table."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.metrics import Direction, foreign_direction, metric_direction
from furnace_hpc.config.parsing.format_number import check_not_newer
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.state import RunState, RunStatus, read_status
from furnace_hpc.tables.data_sets import rank_notes, rank_over_data_sets
from furnace_hpc.tables.factors import factor_effects
from furnace_hpc.tables.large.changes import (
    FindChanges,
    changed_settings,
    flat_identity,
    settings_of,
)
from furnace_hpc.tables.large.run_names import ids_of
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.notes import make_notes
from furnace_hpc.tables.reading.cache import Records, read_records
from furnace_hpc.tables.reading.costs import costs_of_attempts
from furnace_hpc.tables.reading.resolution import resolution_of
from furnace_hpc.tables.reading.run_files import Record, read_record
from furnace_hpc.tables.statistics import estimates, resampling
from furnace_hpc.tables.statistics.factorial import FactorEffects, judge_effects
from furnace_hpc.tables.statistics.units import Draw, pair_up
from furnace_hpc.tables.statistics.verdicts import Verdict, judge, with_family
from furnace_hpc.tables.table import (
    Ablation,
    Row,
    Run,
    data_sets_of,
    several_packs,
    test_per_train,
    values_by_draw,
)
from furnace_hpc.tables.text import format_value

ONLY_EFFECTS = (
    "Rows have no marks, verdicts and corrected p values, because the grid gives verdicts to the "
    "effects of its factors."
)
GetStatus = Callable[[RunFolder], RunStatus]  # from the run's files alone, or from Slurm too


def collect(
    grid: Grid,
    runs: list[RunSpec],
    folder: GridFolder,
    get_status: GetStatus = read_status,
    by: tuple[str, ...] = (),
    excluded_ids: Collection[str] = (),
    records: Records | None = None,
    other_table_ids: Collection[str] = (),
    why_no_verdict: str = "",
    num_removed: int = 0,
) -> Ablation:
    """Make the table of `runs` from the current files in `folder`.

    Args:
        grid: the grid as the table shows it.
        runs: the planned runs that the table shows. Those of the grid's `sources` are left out.
        folder: folder of the grid's runs.
        get_status: returns the status of a run without a result.
        by: config keys whose values make the rows. If empty, each variant is a row.
        excluded_ids: runs of the grid that `--where` excludes.
        records: content of the run files, if it was read before.
        other_table_ids: runs in `folder` that belong to tables with other settings.
        why_no_verdict: why no row may have a verdict. Empty if rows may.
        num_removed: rows that were removed after runs had results. The correction counts them.

    Raises:
        ConfigError: there are results, and none has the grid's metric.
    """
    records = records or read_records(folder)
    sources = ids_of([spec for spec in runs if spec.variant in grid.sources])
    other_ids = {*other_table_ids, *sources}
    runs = [spec for spec in runs if spec.variant not in grid.sources]
    named: dict[str, list[Run]] = {}
    for spec, run_id in zip(runs, ids_of(runs), strict=True):
        record = records.by_run.get(run_id, Record())
        run = collect_run(spec, folder.run(run_id), record, grid, get_status)
        named.setdefault(row_name(spec, by), []).append(run)
    found = _compared(
        grid, named, records, by, excluded_ids, other_ids, why_no_verdict, num_removed
    )
    return with_more_metrics(replace(found, num_removed=num_removed))


def _compared(
    grid: Grid,
    named: dict[str, list[Run]],
    records: Records,
    by: tuple[str, ...],
    excluded_ids: Collection[str],
    other_ids: Collection[str],
    why_no_verdict: str,
    num_removed: int,
) -> Ablation:
    """The table of rows whose runs were read. The arguments are those of `collect`."""
    results = [run.own_result for row in named.values() for run in row if run.own_result]
    for metric in (grid.metric, *grid.more_metrics):
        _check_metric(grid, metric, results)
    resolution = resolution_of(grid.metric, [run for row in named.values() for run in row])
    tuned: tuple[str, ...] = ()
    if grid.tune and not by:  # their column has the chosen values
        tuned = tuple(grid.tune.space)
    find_changes = partial(changed_settings, tuned=tuned)
    rows = compare_rows(named, grid.reference, by, find_changes, resolution)
    effects = factor_effects(grid, rows, resolution)
    if not why_no_verdict:
        rows, effects = judge_table(rows, grid, effects, num_removed)
    ranks, no_ranks = rank_over_data_sets(
        grid, rows, partial(settings_of, tuned=tuned), has_verdicts=not why_no_verdict
    )
    if not why_no_verdict and effects and grid.verdicts == "effects":
        why_no_verdict = ONLY_EFFECTS
    notes = make_notes(grid, rows, records, excluded_ids, other_ids)
    notes += tuple(rank_notes(ranks, no_ranks))
    found = Ablation(grid, rows, notes, records, why_no_verdict=why_no_verdict, ranks=ranks)
    return replace(found, resolution=resolution, effects=effects)


def with_more_metrics(ablation: Ablation) -> Ablation:
    """The table with the further metrics of its grid."""
    others = []
    direction_of = metric_direction if ablation.source is None else foreign_direction
    for name in ablation.grid.more_metrics:
        direction = direction_of(name)
        other = with_metric(ablation, name, direction or "max")
        others.append(replace(other, has_direction=direction is not None))
    return replace(ablation, others=tuple(others))


def with_metric(ablation: Ablation, metric: str, direction: Direction) -> Ablation:
    """The table with the values of another metric, without verdicts."""

    def measured(run: Run) -> Run:
        value = None
        if run.result is not None:
            value = run.result.metrics.get(metric)
        return replace(run, value=value)

    named = {row.variant: [measured(run) for run in row.runs] for row in ablation.rows}
    runs = [run for of_row in named.values() for run in of_row]
    resolution, source = resolution_of(metric, runs), ablation.source
    rows = compare_rows(named, ablation.grid.reference, (), lambda ours, theirs: (), resolution)
    if source is not None:
        source = source._replace(is_plain=any(1 < abs(run.value or 0.0) < inf for run in runs))
    return replace(
        ablation,
        grid=ablation.grid.model_copy(
            update={"metric": metric, "metrics": (), "direction": direction}
        ),
        rows=tuple(
            replace(row, changes=old.changes) for row, old in zip(rows, ablation.rows, strict=True)
        ),
        notes=(),
        source=source,
        effects=None,
        ranks=None,
        others=(),
        why_no_verdict=(
            f"{metric} has no marks, verdicts and corrected p values, because the grid compares "
            f"its rows by {ablation.grid.metric}. Intervals are paired t intervals (95 %), not "
            f"corrected for the number of rows."
        ),
        resolution=resolution,
    )


def collect_run(
    spec: RunSpec,
    folder: RunFolder,
    record: Record,
    grid: Grid,
    get_status: GetStatus = read_status,
) -> Run:
    """Collect one run.

    If its result cannot be used, the run is missing, and its status has the reason.
    """
    record, result, status = _check_result(folder, record, get_status)
    value = None
    if result:
        value = result.metrics.get(grid.metric)
    pack = ""
    if several_packs(grid):
        pack = spec.config.data.name
    draw = Draw(pack, spec.config.seed)
    costs = costs_of_attempts(record, result)
    return Run(spec, folder, status, result, value, draw, costs, record)


def _check_result(
    folder: RunFolder, record: Record, get_status: GetStatus
) -> tuple[Record, RunResult | None, RunStatus]:
    """The record, the result if it can be used, and the status of a run."""
    if record.result is None:
        status = get_status(folder)
        if status.state is RunState.DONE:  # the run has ended since its files were read
            record = read_record(folder)
        if record.result is None:
            return record, None, _check_link(folder, status)
    try:
        result = RunResult.from_json(record.result.decode("utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        return record, None, _unusable(get_status(folder), _why_unreadable(error))
    if result.run_id != folder.run_id and not _is_adopted(folder, result):
        reason = f"result.json belongs to {result.run_id}"
        return record, None, _unusable(get_status(folder), reason)
    return record, result, RunStatus(RunState.DONE, result.attempts, result.steps, "")


def _check_link(folder: RunFolder, status: RunStatus) -> RunStatus:
    """The status of a run without a result, which names a broken link."""
    if not folder.path.is_symlink() or folder.path.exists():
        return status
    target = folder.path.readlink()
    return _unusable(status, f"its folder is a broken link to {target}. Submit the run again")


def _is_adopted(folder: RunFolder, result: RunResult) -> bool:
    """Whether the folder is a link to the run of the result, which has the same seed and hash."""
    same_hash = folder.run_id.rsplit("-", 2)[1:] == result.run_id.rsplit("-", 2)[1:]
    return same_hash and folder.path.is_symlink() and folder.path.readlink().name == result.run_id


def _unusable(status: RunStatus, reason: str) -> RunStatus:
    return RunStatus(RunState.UNKNOWN, status.attempt, status.step, reason)


def _why_unreadable(error: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError) or error.errors()[0]["type"] == "json_invalid":
        return "result.json is incomplete or damaged. Remove it and submit the run again"
    try:
        check_not_newer(Path("result.json"), error)
    except ConfigError as newer:
        return str(newer)
    return "result.json was written by another version of the code"


def row_name(spec: RunSpec, by: tuple[str, ...]) -> str:
    """Name of the row that shows a run: its variant, or its values of the keys `by`."""
    if not by:
        return spec.variant
    values = flat_config(spec)
    return ", ".join(f"{key}={format_value(values.get(key))}" for key in by)


def flat_config(spec: RunSpec) -> dict[str, Any]:
    """Dotted key -> value of each config key that decides the run's numbers, and its variant."""
    return {"variant": spec.variant, "seed": spec.config.seed, **flat_identity(spec.config)}


def compare_rows(
    named: dict[str, list[Run]],
    reference: str,
    by: tuple[str, ...] = (),
    find_changes: FindChanges = changed_settings,
    resolution: float = 0.0,
) -> tuple[Row, ...]:
    """The rows with their differences to the reference."""
    theirs = named.get(reference)
    if not theirs:
        return tuple(Row(name, tuple(runs), (), None) for name, runs in named.items())
    found, data_sets = [], data_sets_of(theirs)
    for name, ours in named.items():
        changes = find_changes(ours, theirs)
        if by:  # the runs of one row differ in the other keys
            changes = tuple(change for change in changes if change.key in by)
        difference = None
        if ours is not theirs and data_sets_of(ours) == data_sets:
            difference = difference_of(ours, theirs, resolution)
        found.append(Row(name, tuple(ours), changes, difference))
    return tuple(found)


def with_verdicts(rows: tuple[Row, ...], grid: Grid) -> tuple[Row, ...]:
    """The rows of a table without effects of factors, with their verdicts."""
    return judge_table(rows, grid, None)[0]


def judge_table(
    rows: tuple[Row, ...], grid: Grid, effects: FactorEffects | None, num_removed: int = 0
) -> tuple[tuple[Row, ...], FactorEffects | None]:
    """The rows and the effects with their verdicts, corrected together for their number.

    The grid's key `verdicts` may leave out one of them. Rows that were removed after a look count
    in the correction.

    A row without values counts too, so that missing runs change no verdict of another row. A row
    that lacks a run, or whose reference does, is undecided: the runs that remain may be the better
    ones. Rows on other data than the reference have no verdict, because values on different data
    cannot be compared.
    """
    metric = Metric(grid.metric, grid.direction)
    reference = next((row for row in rows if row.variant == grid.reference), None)
    compared = {
        row.variant
        for row in rows
        if reference is None or (row is not reference and row.data_sets == reference.data_sets)
    }
    if not compared:
        return rows, effects
    sesoi = grid.sesoi and grid.sesoi / metric.scale.factor
    judges_rows = effects is None or grid.verdicts != "effects"
    differences, family, other_p = [], 0, []
    if judges_rows:
        differences, family = [row.difference for row in rows], len(compared) + num_removed
    if effects and grid.verdicts != "rows":
        differences += [effect.difference for effect in effects.effects]
        family += effects.num_comparisons
        other_p = [test.p for test in effects.tests if test.p is not None]
    corrected = with_family(differences, family, sesoi, other_p)
    if effects and grid.verdicts != "rows":
        of_others = estimates.holm_of_others(differences, family, other_p)
        of_effects = corrected[-len(effects.effects) :]
        effects = judge_effects(effects, of_effects, of_others, metric.direction == "max")
    if not judges_rows:
        return rows, effects
    reference_has_gaps = reference is not None and bool(reference.gaps)
    found = []
    for row, difference in zip(rows, corrected[: len(rows)], strict=True):
        verdict: Verdict | None = None
        if row.variant in compared:
            verdict = Verdict.UNDECIDED
            if not row.gaps and not reference_has_gaps:
                verdict = judge(difference, metric.direction == "max")
        found.append(replace(row, difference=difference, verdict=verdict))
    return tuple(found), effects


def difference_of(
    ours: list[Run], theirs: list[Run], resolution: float = 0.0
) -> estimates.Difference | None:
    """Difference over the draws that both rows have, not corrected for the number of rows."""
    pairs = pair_up(values_by_draw(ours), values_by_draw(theirs))
    difference = estimates.paired_difference(pairs.ours, pairs.theirs, resolution)
    return resampling.corrected(difference, test_per_train(ours))


def _check_metric(grid: Grid, metric: str, results: list[RunResult]) -> None:
    names = {name for result in results for name in result.metrics}
    if results and metric not in names:
        raise ConfigError(
            f"grid {grid.name!r}: metric {metric!r} is in no result; "
            f"{nearest(metric, names)}. Set `metric` to one of them"
        )
