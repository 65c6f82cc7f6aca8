"""Make runs from the lines of other tools' files."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.text_safety import short
from furnace_hpc.tables.reading.foreign.columns import FileColumns, Query, find_columns
from furnace_hpc.tables.reading.foreign.formats import (
    Format,
    recognise,
    split_run_name,
    tensorboard_tag,
)
from furnace_hpc.tables.reading.foreign.lines import SUFFIXES, LinesFile, Values, open_lines
from furnace_hpc.tables.reading.foreign.tensorboard import event_runs

MAX_RUNS = 100_000
MAX_METRICS = 1000  # names that are kept for an error
NO_VALUE = "no value"  # of a run whose lines never have the metric
# a number as a tool writes it: not 007, which may be a name
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
MISSING = frozenset({"", "nan", "none", "null", "na", "n/a"})  # in lower case


class RunKey(NamedTuple):
    """What identifies a run."""

    row: str
    pack: str
    seed: int

    def __str__(self) -> str:
        parts = [self.row, self.pack, f"seed {self.seed}"]
        return ", ".join(part for part in parts if part)


@dataclass
class ForeignRun:
    """One run of another tool."""

    key: RunKey
    place: str  # file and line
    value: float | None = None  # None if the run failed or has no value
    problem: str = ""  # why it has no value
    step: float | None = None  # of the value, if the file has a line per step
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class ForeignRuns:
    """All runs of the given files."""

    query: Query
    runs: dict[RunKey, ForeignRun] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)  # names that the files have
    tools: list[str] = field(default_factory=list)
    of_last_step: bool = False  # whether values are those of the last step
    unnamed: str = ""  # a file that does not name the metric of its values
    newest: dict[RunKey, ForeignRun] = field(default_factory=dict)  # line of a W&B history

    def check_order(self, run: ForeignRun) -> None:
        """Refuse a step that a W&B history has before: W&B gives several runs one name.

        Raises:
            ConfigError: the step is not above that of an earlier line of the same run and file.
        """
        before = self.newest.get(run.key)
        self.newest[run.key] = run
        if before is None or _file_of(run) != _file_of(before):
            return
        assert run.step is not None
        assert before.step is not None
        if run.step <= before.step:
            raise ConfigError(
                f"{run.place}: step {run.step:,.0f} of {run.key} comes after step "
                f"{before.step:,.0f} ({before.place}), so these may be two runs of one name. "
                f"Rename one, or export a file per run. If it is one run, sort its lines by step"
            )

    def add(self, run: ForeignRun) -> None:
        """Add a run, or a later step of one.

        Raises:
            ConfigError: there is another run with the same row, pack and seed, or too many.
        """
        other = self.runs.get(run.key)
        if other is None:
            if len(self.runs) == MAX_RUNS:
                raise ConfigError(
                    f"{run.place}: more than {MAX_RUNS:,} runs. Give a file with one line per run"
                )
            self.runs[run.key] = run
        elif run.problem == NO_VALUE:
            return
        elif other.problem == NO_VALUE:
            self.runs[run.key] = run
        elif run.step is None or other.step is None or _file_of(run) != _file_of(other):
            raise _duplicate(run, other)
        elif run.step >= other.step:
            self.runs[run.key] = run


def read_foreign(paths: Sequence[Path], query: Query) -> ForeignRuns:
    """Read the runs of some files and folders.

    Raises:
        ConfigError: no file has a run, or the first problem of the files.
    """
    found = ForeignRuns(query)
    for path in _files(paths):
        _read_file(path, found)
    if not found.runs and not found.metrics:
        raise ConfigError(f"{_list(paths)}: no runs, only a header. Export the runs again")
    if all(run.problem == NO_VALUE for run in found.runs.values()):
        raise ConfigError(
            f"{_list(paths)}: --metric {query.metric}: no run has this metric; "
            f"{nearest(query.metric, found.metrics)}"
        )
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files, with those of each folder in the order of their names."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES or "tfevents" in file.name
        )
        if not inside:
            raise ConfigError(
                f"{path}: the folder has no event files of TensorBoard and no file with a suffix "
                f"of {', '.join(SUFFIXES)}. Give another folder"
            )
        event_folders = dict.fromkeys(file.parent for file in inside if "tfevents" in file.name)
        yield from event_folders
        yield from (file for file in inside if "tfevents" not in file.name)


def _read_file(path: Path, found: ForeignRuns) -> None:
    if path.is_dir() or "tfevents" in path.name:
        _read_events(path, found)
        return
    file = open_lines(path)
    form = recognise(file)
    if form.tool and form.tool not in found.tools:
        found.tools.append(form.tool)
    _remember_metrics(found, file, form)
    tag = form.file_metric
    if tag is not None and tensorboard_tag(found.query.metric) != tensorboard_tag(tag):
        return
    found.of_last_step = found.of_last_step or form.step is not None
    columns = find_columns(file, form, found.query)
    for number, values in file.lines(columns.names()):
        if columns.metric is not None:
            name = str(values.get(columns.metric))
            _remember(found, name)
            if name != found.query.metric:
                key = _key(file.place(number), values, columns, _name_of(values, columns, form))
                found.add(ForeignRun(key, file.place(number), None, NO_VALUE))
                continue
        run = _run_of(file.place(number), values, columns, form, found.query.metric)
        if form.tool == "W&B" and form.step is not None:
            found.check_order(run)
        found.add(run)


def _read_events(path: Path, found: ForeignRuns) -> None:
    """Read event files of TensorBoard. They have no columns, so the run's name says all."""
    query = found.query
    columns = {name: column for name, column in vars(query).items() if name != "metric"}
    if given := [
        f"--{name.replace('_', '-')}" for name, column in columns.items() if column is not None
    ]:
        raise ConfigError(
            f"{path}: event files have no columns for {' and '.join(given)}. Leave that out and "
            f"name the folder of a run as base-seed3, or give a CSV file with these columns"
        )
    run = event_runs(path, query.metric)
    if "TensorBoard" not in found.tools:
        found.tools.append("TensorBoard")
    found.of_last_step = True
    for tag in run.tags:
        _remember(found, tag)
    row, seed = _split(str(path), run.name)
    key = RunKey(row, "", seed)
    place = f"{path}: step {run.step}"
    if run.value is None:
        found.add(ForeignRun(key, str(path), None, NO_VALUE, -1.0))
    else:
        problem = f"{query.metric} is NaN" if isnan(run.value) else ""
        found.add(ForeignRun(key, place, None if problem else run.value, problem, run.step))


def _remember_metrics(found: ForeignRuns, file: LinesFile, form: Format) -> None:
    """The metrics that the name of a file, or the columns of a history, name."""
    if form.file_metric is not None:
        _remember(found, form.file_metric)
    elif form.value is not None:
        found.unnamed = str(file.path)
    elif form.step is not None:
        for name in file.columns:
            if not name.startswith("_"):  # W&B's own columns
                _remember(found, name)


def _remember(found: ForeignRuns, name: str) -> None:
    if len(found.metrics) < MAX_METRICS:
        found.metrics.add(name)


def _run_of(
    place: str, values: Values, columns: FileColumns, form: Format, metric: str
) -> ForeignRun:
    """The run of one line, or one step of a run."""
    key = _key(place, values, columns, _name_of(values, columns, form))
    run = ForeignRun(key, place)
    run.settings = {column: _setting(values.get(column)) for column in columns.settings}
    if columns.step is not None:
        run.step = _number(place, columns.step, values.get(columns.step))
        if run.step is None:
            raise ConfigError(f"{place}: {columns.step} is empty, wanted the step. Add it")
    state = _text(values.get(columns.state)) if columns.state else ""
    if state and state.lower() != form.finished.lower():
        run.problem = f"its state is {short(state)}"
        return run
    content = values.get(columns.value) if columns.value else None
    if columns.step is not None and not _text(content):  # not logged at this step
        run.problem = NO_VALUE
        return run
    run.value = _number(place, metric, content)
    if run.value is None:
        shown = _text(content) or "empty"
        run.problem = f"{metric} is {shown}"
    return run


def _name_of(values: Values, columns: FileColumns, form: Format) -> str | None:
    """Name of the run of a line. None if neither the line nor the file has one."""
    name = columns.run_name and _text(values.get(columns.run_name))
    return name or form.file_run


def _key(place: str, values: Values, columns: FileColumns, name: str | None) -> RunKey:
    pack = ""
    if columns.pack is not None:
        pack = _given(place, columns.pack, values)
    row = seed = None
    if columns.row is None or columns.seed is None:
        row, seed = _split(place, name or "", columns)
    if columns.row is not None:
        row = _given(place, columns.row, values)
    if columns.seed is not None:
        seed = _whole(place, columns.seed, _given(place, columns.seed, values))
    assert row is not None
    assert seed is not None
    return RunKey(row, pack, seed)


def _split(place: str, name: str, columns: FileColumns | None = None) -> tuple[str, int]:
    """Row and seed from the name of a run."""
    found = split_run_name(name)
    if found is None:
        options = "--row and --seed"
        if columns and columns.row is not None:
            options = "--seed"
        raise ConfigError(
            f"{place}: the run name {short(name)!r} does not end in a seed (example: base-seed3). "
            f"Name the columns with {options}, or rename the run"
        )
    return found


def _given(place: str, column: str, values: Values) -> str:
    text = _text(values.get(column))
    if not text:
        raise ConfigError(f"{place}: {column} is empty. Each run needs one")
    return text


def _whole(place: str, column: str, text: str) -> int:
    try:
        number = float(text)
        if number == int(number):
            return int(text) if text.lstrip("+-").isdigit() else int(number)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{place}: {column} is {short(text)!r}, wanted a whole number. Correct it")


def _number(place: str, column: str, value: Any) -> float | None:
    """A finite or infinite number. None if it is missing or NaN."""
    text = _text(value)
    if text.lower() in MISSING:
        return None
    try:
        if isinstance(value, bool) or "_" in text:
            raise ValueError
        number = float(text)
    except ValueError:
        fix = "Correct it, or leave it empty if the run failed"
        if text.endswith("%"):
            fix = "Remove the percent sign"
        elif text.count(",") == 1 and text.replace(",", "").lstrip("+-").isdigit():
            fix = "Write a decimal point, and no separator of thousands"
        raise ConfigError(f"{place}: {column} is {short(text)!r}, wanted a number. {fix}") from None
    return None if isnan(number) else number


def _setting(value: Any) -> Any:
    """The value of a setting. Tools store numbers as text, such as MLflow its `params`."""
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    if value.lstrip("-").isdigit():
        return int(value)
    return float(value) if isfinite(float(value)) else value


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _file_of(run: ForeignRun) -> str:
    return run.place.rpartition(":")[0]


def _duplicate(run: ForeignRun, other: ForeignRun) -> ConfigError:
    return ConfigError(
        f"{run.place}: a second run of {run.key}, after {other.place}. Remove one, or name the "
        f"column that tells them apart with --row, --seed or --pack"
    )


def _list(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:5]))
