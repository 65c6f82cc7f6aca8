"""Make a table of the runs of another tool: CSV files, and exports of W&B, MLflow, TensorBoard.

The runs become the same `Run` and `Row` as those of a grid, with a smaller spec and result.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.metrics import Direction, foreign_direction
from furnace_hpc.config.parsing.text_safety import find_secret
from furnace_hpc.host.regular_file import IrregularFile, read_regular
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.state import RunState, RunStatus
from furnace_hpc.tables.collect import compare_rows, judge_table, with_more_metrics
from furnace_hpc.tables.data_sets import rank_notes, rank_over_data_sets
from furnace_hpc.tables.factors import SEVERAL, factor_effects
from furnace_hpc.tables.large.changes import changes_of
from furnace_hpc.tables.metric import Metric
from furnace_hpc.tables.notes import notes_of_values
from furnace_hpc.tables.reading.cache import no_records
from furnace_hpc.tables.reading.foreign.columns import Query
from furnace_hpc.tables.reading.foreign.runs import ForeignRun, ForeignRuns, RunKey, read_foreign
from furnace_hpc.tables.statistics.units import Draw
from furnace_hpc.tables.table import (
    SOURCE_FILE,
    Ablation,
    ForeignResult,
    ForeignSpec,
    Note,
    Row,
    Run,
    Source,
)
from furnace_hpc.tables.text import list_names

ABSENT = "no line in"  # of a run that other rows have
USUAL_REFERENCES = ("base", "baseline", "reference")  # without --reference


@dataclass(frozen=True)
class ForeignTable:
    """The options of `aggregate --from`."""

    paths: tuple[Path, ...]
    query: Query
    reference: str | None = None
    direction: Direction | None = None
    more_metrics: tuple[str, ...] = ()  # further columns, without verdicts

    @property
    def name(self) -> str:
        """Name of the results folder: of the first file, and of the metrics."""
        parts = [self.paths[0].resolve().stem, self.query.metric, *self.more_metrics]
        words = [re.sub(r"[^A-Za-z0-9._+-]+", "-", part).strip("-.") for part in parts]
        return "--".join(word for word in words if word)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Full paths of the files, and the metric. They tell two tables of one name apart."""
        return (*(str(path.resolve()) for path in self.paths), self.query.metric)


def check_same_input(out: Path, wanted: ForeignTable) -> None:
    """Refuse to overwrite the table of other files with the same name.

    Raises:
        ConfigError: the folder has the table of other files, or of another metric.
    """
    try:
        *files, metric = json.loads(read_regular(out / SOURCE_FILE))["inputs"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, IrregularFile):
        raise ConfigError(
            f"{out / SOURCE_FILE} is damaged, so the runs of that table are unknown. Give another "
            f"folder with --out, or remove {out}"
        ) from None
    if (*files, metric) != wanted.inputs:
        raise ConfigError(
            f"{out} has the table of {metric} from {', '.join(map(str, files))}. Give another "
            f"folder for this table with --out, or remove {out}"
        )


def _getter(
    settings: dict[str, list[dict[str, Any]]],
) -> Callable[[Sequence[Run]], dict[str, Any]]:
    """A function that returns the settings of a row. `settings`: row -> settings of each run."""

    @cache
    def settings_of_row(name: str) -> dict[str, Any]:
        of_runs = settings[name]
        return dict.fromkeys(of_runs[0], SEVERAL) | _common(of_runs)

    return lambda of_row: settings_of_row(of_row[0].spec.variant)


def collect_foreign(wanted: ForeignTable) -> Ablation:
    """Make the table of the runs in other tools' files.

    Raises:
        ConfigError: the files have a problem, the reference does not exist, or the direction of the
            metric is unknown.
    """
    direction = _direction(wanted)
    found = read_foreign(wanted.paths, wanted.query)
    runs, more_values = list(found.runs.values()), _more_values(wanted, found)
    names = list(dict.fromkeys(run.key.row for run in runs))
    packs = tuple(dict.fromkeys(run.key.pack for run in runs if run.key.pack))
    reference = _reference(wanted, names)
    # It has no base config, and names of rows are any text. So it is not validated as a grid file.
    grid = Grid.model_construct(
        name=wanted.name,
        base={},
        seeds=tuple(sorted({run.key.seed for run in runs})),
        packs=packs,
        reference=reference,
        metric=wanted.query.metric,
        metrics=(wanted.query.metric, *wanted.more_metrics),
        direction=direction,
    )
    named: dict[str, list[Run]] = {name: [] for name in names}
    settings: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for run in [*runs, *_absent_runs(runs, reference)]:
        known = _run(run, wanted.query, len(packs) > 1)
        named[run.key.row].append(_with_values(known, more_values.get(run.key, {})))
        settings[run.key.row].append(_without_secrets(run.settings))

    settings_of = _getter(settings)
    rows = compare_rows(
        named,
        reference,
        find_changes=lambda ours, theirs: changes_of(settings_of(ours), settings_of(theirs)),
    )
    rows, effects = judge_table(rows, grid, factor_effects(grid, rows))
    ranks, no_ranks = None, ""
    if wanted.query.data_set is not None:
        ranks, no_ranks = rank_over_data_sets(grid, rows, settings_of)
    notes = [
        *notes_of_values(grid, rows),
        *_mixed_units(grid, rows),
        *_uneven_steps(runs),
        *_mixed_settings(settings),
        *rank_notes(ranks, no_ranks),
    ]
    return with_more_metrics(
        Ablation(
            grid,
            rows,
            tuple(notes),
            no_records(),
            source=_source(wanted, found, ranks is not None),
            effects=effects,
            ranks=ranks,
        )
    )


def _more_values(wanted: ForeignTable, found: ForeignRuns) -> dict[RunKey, dict[str, float]]:
    """Key of a run -> values of the further metrics.

    Raises:
        ConfigError: no run has such a metric, or a metric was given twice, or a file does not name
            the metric of its values.
    """
    names = (wanted.query.metric, *wanted.more_metrics)
    if len(set(names)) < len(names):
        raise ConfigError(f"--metric has a duplicate: {', '.join(names)}. Give each once")
    values: dict[RunKey, dict[str, float]] = {}
    if wanted.more_metrics and found.unnamed:
        raise ConfigError(
            f"--metric {wanted.more_metrics[0]}: {found.unnamed} does not name the metric of its "
            f"values. Give one --metric, or name the file as TensorBoard does: "
            f"run-base-seed0-tag-{wanted.query.metric}.csv"
        )
    for name in wanted.more_metrics:
        others = read_foreign(wanted.paths, replace(wanted.query, metric=name)).runs
        for key, run in others.items():
            if run.value is not None:
                values.setdefault(key, {})[name] = run.value
    return values


def _with_values(run: Run, values: dict[str, float]) -> Run:
    """The run with the values of further metrics."""
    if run.result is None:
        return run
    return replace(run, result=ForeignResult(run.result.metrics | values))


def _direction(wanted: ForeignTable) -> Direction:
    """The given direction, else that of the metric's name.

    Raises:
        ConfigError: it is unknown, or the two contradict each other.
    """
    known = foreign_direction(wanted.query.metric)
    direction = wanted.direction or known
    if known is not None and direction != known:
        better = {"max": "higher", "min": "lower"}[known]
        raise ConfigError(
            f"--direction {direction} contradicts --metric {wanted.query.metric}: {better} is "
            f"better. Leave --direction out, or rename the metric if it is another one"
        )
    if direction is None:
        raise ConfigError(
            f"--metric {wanted.query.metric}: whether higher or lower is better is unknown. Add "
            f"--direction max if higher is better, or --direction min"
        )
    return direction


def _reference(wanted: ForeignTable, names: Sequence[str]) -> str:
    """The row that the others are compared with."""
    if wanted.reference is not None:
        if wanted.reference not in names:
            raise ConfigError(
                f"--reference {wanted.reference}: no run has this row; "
                f"{nearest(wanted.reference, names)}"
            )
        return wanted.reference
    usual = [name for name in names if name.lower() in USUAL_REFERENCES]
    if len(usual) == 1:
        return usual[0]
    raise ConfigError(
        f"the row that the others are compared with is unknown. Add --reference ROW; "
        f"{nearest(USUAL_REFERENCES[0], names)}"
    )


def _absent_runs(runs: Sequence[ForeignRun], reference: str) -> Iterator[ForeignRun]:
    """Runs that other rows have and a row lacks: a tool may drop runs that crashed.

    A row that shares no pack and seed with the reference has no difference, and lacks nothing.
    """
    draws: dict[str, set[tuple[str, int]]] = {}
    for run in runs:
        draws.setdefault(run.key.row, set()).add((run.key.pack, run.key.seed))
    paired = {row: found for row, found in draws.items() if found & draws[reference]}
    planned = set().union(*paired.values())
    for row, found in paired.items():
        for pack, seed in sorted(planned - found):
            yield ForeignRun(RunKey(row, pack, seed), "the files", None, ABSENT)


def _run(found: ForeignRun, query: Query, has_packs: bool) -> Run:
    """The run as a table has it. Spec and result have only what is known."""
    row, pack, seed = found.key
    run_id = f"{row}-{pack}-s{seed}" if has_packs else f"{row}-s{seed}"
    result, status = None, RunStatus(RunState.DONE, 0, 0, "")
    if found.problem == ABSENT:
        status = RunStatus(RunState.NEW, 0, 0, f"{ABSENT} {found.place}")
    elif found.value is None:
        status = RunStatus(RunState.FAILED, 0, 0, f"{found.problem}, {found.place}")
    else:
        result = ForeignResult({query.metric: found.value})
    return Run(
        spec=ForeignSpec(row, "pack" if query.data_set is None else "data set"),
        folder=RunFolder(Path(run_id.replace("/", "_"))),
        status=status,
        result=result,
        value=found.value,
        draw=Draw(pack if has_packs else "", seed),
        origin=found.place,
    )


def _without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that do not look like a secret, which a report would spread."""
    texts = {key: f"{key}={value}" for key, value in settings.items()}
    return {key: settings[key] for key, text in texts.items() if find_secret(text) is None}


def _common(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that are the same in all runs of a row."""
    first, *others = settings
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }


def _mixed_units(grid: Grid, rows: Sequence[Row]) -> Iterator[Note]:
    """Rows with small values of a share, if other values can only be percent."""
    values = {row.variant: [*row.values.values()] for row in rows}
    highest = max((value for of_row in values.values() for value in of_row), default=0.0)
    if Metric(grid.metric, grid.direction).limits != (0.0, 1.0) or highest <= 1:
        return
    small = {
        name: f"{name} {number} of {len(of_row)} runs"
        for name, of_row in values.items()
        if (number := sum(0 < value <= 1 for value in of_row))
    }
    if small:
        yield Note(
            f"units may differ: {grid.metric} has values above 1, and values from 0 to 1 in "
            f"{list_names(list(small.values()))}. Check that all are shares, or all percent",
            tuple(small),
        )


def _uneven_steps(runs: Sequence[ForeignRun]) -> Iterator[Note]:
    """Rows with a run whose last value is of an earlier step than that of other runs.

    Such a run may have been cut off.
    """
    steps = {run.key: run.step for run in runs if run.value is not None and run.step is not None}
    last = max(steps.values(), default=0.0)
    early = {key: step for key, step in steps.items() if step < last}
    if early:
        runs_text = list_names([f"{key} at {step:,.0f}" for key, step in early.items()])
        yield Note(
            f"values of other steps than the last one ({last:,.0f}): {runs_text}",
            tuple(dict.fromkeys(key.row for key in early)),
        )


def _mixed_settings(settings: dict[str, list[dict[str, Any]]]) -> Iterator[Note]:
    """Rows whose runs differ in a setting."""
    for row, of_runs in settings.items():
        mixed = sorted(of_runs[0].keys() - _common(of_runs).keys())
        if mixed:
            yield Note(f"settings differ between the runs of a row: {list_names(mixed)}", (row,))


def _source(wanted: ForeignTable, found: ForeignRuns, has_ranks: bool) -> Source:
    values = [run.value for run in found.runs.values() if run.value is not None]
    is_one = len({run.key.pack for run in found.runs.values()}) < 2
    packs_are = ""
    if wanted.query.data_set is not None:
        packs_are = "one data set" if is_one else "ranked " * has_ranks + "data sets"
    elif wanted.query.pack is not None:
        packs_are = "one pack" if is_one else "draws"
    return Source(
        files=list_names([path.name or str(path) for path in wanted.paths]),
        tool=" and ".join(found.tools),
        of_last_step=found.of_last_step,
        is_plain=any(1 < abs(value) < inf for value in values),
        packs_are=packs_are,
        inputs=wanted.inputs,
    )
