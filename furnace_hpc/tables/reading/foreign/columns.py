"""Find the columns of a file that name the run, its draw and the metric."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.tables.reading.foreign.formats import Format, find_column
from furnace_hpc.tables.reading.foreign.lines import LinesFile

ROWS, SEEDS = ("variant", "row"), ("seed",)  # used without --row and --seed
METRICS = ("metric", "tag", "key")  # columns with the names of metrics, of a long file
VALUE = "value"


@dataclass(frozen=True)
class Query:
    """The options that say where the runs of a file have their row, seed, pack and metric."""

    metric: str
    row: str | None = None
    seed: str | None = None
    pack: str | None = None  # column with the draw of the data
    value: str | None = None  # column with the values of a long file
    data_set: str | None = None  # column with the data set, instead of `pack`

    def __post_init__(self) -> None:
        """Refuse two meanings of a pack.

        Raises:
            ConfigError: both `pack` and `data_set` are given.
        """
        if self.pack is not None and self.data_set is not None:
            raise ConfigError(
                "--pack and --data-set were given. Give --pack if the column has draws of one data "
                "set, or --data-set if it has data sets"
            )


@dataclass(frozen=True)
class FileColumns:
    """The columns of one file. None if the file does not have one."""

    row: str | None
    seed: str | None
    pack: str | None
    value: str | None
    metric: str | None  # column with names of metrics, if the file is long
    run_name: str | None
    state: str | None
    step: str | None
    settings: tuple[str, ...]

    def names(self) -> list[str]:
        """All of them."""
        found = [self.row, self.seed, self.pack, self.value, self.metric]
        found += [self.run_name, self.state, self.step, *self.settings]
        return list(dict.fromkeys(name for name in found if name is not None))


def find_columns(file: LinesFile, form: Format, query: Query) -> FileColumns:
    """The columns of a file. `value` is None if a file with the history of a run lacks the metric.

    Raises:
        ConfigError: a column is missing. The message has the nearest name.
    """
    row = _named(file, form, query.row, "--row") or _first(file, form, ROWS)
    seed = _named(file, form, query.seed, "--seed") or _first(file, form, SEEDS)
    has_name = form.run_name is not None or form.file_run is not None
    if not has_name:
        _check(file, row, ROWS, "--row")
        _check(file, seed, SEEDS, "--seed")
    value, metric = _values(file, form, query)
    pack = _named(file, form, query.pack, "--pack")
    pack = pack or _named(file, form, query.data_set, "--data-set")
    used = {row, seed, pack}
    return FileColumns(
        row=row,
        seed=seed,
        pack=pack,
        value=value,
        metric=metric,
        run_name=form.run_name,
        state=form.state,
        step=form.step,
        settings=tuple(name for name in _settings(file, form) if name not in used),
    )


def _values(file: LinesFile, form: Format, query: Query) -> tuple[str | None, str | None]:
    """The column of values, and the column with the names of metrics if the file is long."""
    if form.value:
        return _named(file, form, query.value, "--value") or form.value, None
    wide = find_column(query.metric, file.columns, form.prefixes)
    names = next((name for name in METRICS if name in file.columns), None)
    if query.value is not None:
        value = _named(file, form, query.value, "--value")
        if names is None:
            raise ConfigError(
                f"{file.path}: --value needs a column with the names of the metrics, and the file "
                f"has none of {', '.join(METRICS)}. Rename it, or leave --value out"
            )
        return value, names
    if wide is None and names is not None and VALUE in file.columns:
        return VALUE, names
    if wide is None and form.step is None:
        raise _missing(file, query.metric, "--metric", form)
    return wide, None


def _named(file: LinesFile, form: Format, name: str | None, option: str) -> str | None:
    """The column that an option names."""
    if name is None:
        return None
    found = find_column(name, file.columns, form.prefixes)
    if found is None:
        raise _missing(file, name, option, form)
    return found


def _first(file: LinesFile, form: Format, names: Sequence[str]) -> str | None:
    found = (find_column(name, file.columns, form.prefixes) for name in names)
    return next(filter(None, found), None)


def _settings(file: LinesFile, form: Format) -> Iterator[str]:
    if form.settings:
        yield from (name for name in file.columns if name.startswith(form.settings))


def _check(file: LinesFile, found: str | None, usual: Sequence[str], option: str) -> None:
    if found is None:
        raise ConfigError(
            f"{file.path}: no column {' or '.join(usual)}. Name the column with {option}; "
            f"{nearest(usual[0], file.columns)}"
        )


def _missing(file: LinesFile, name: str, option: str, form: Format) -> ConfigError:
    text = f"{file.path}: {option} {name}: the file has no such column; "
    text += nearest(name, file.columns)
    if option in ("--row", "--seed") and (form.run_name or form.file_run):
        text += ". Leave --row and --seed out if names of runs end in a seed (example: base-seed3)"
    return ConfigError(text)
