"""Expand a grid to its rows, and rows x packs x seeds to runs, in a fixed order."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from furnace_hpc.config.base import NAME_PATTERN, short_name
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.grids.exclude import Exclusion
from furnace_hpc.config.grids.grid import DeepSpeedFiles, Grid
from furnace_hpc.config.grids.initial_weights import check_sources, source_rows, with_sources
from furnace_hpc.config.grids.overrides import apply_overrides
from furnace_hpc.config.grids.own_code import with_own_code
from furnace_hpc.config.grids.row import GridRow, runs_on
from furnace_hpc.config.grids.tune import check_row
from furnace_hpc.config.identity import seeded_hashes
from furnace_hpc.config.metrics import is_one_of
from furnace_hpc.config.parsing.lookup import find_file, read_json
from furnace_hpc.config.parsing.source_text import Entry, SourceText
from furnace_hpc.config.parsing.validation import MAX_PROBLEMS, Find, group_by_row, validate
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import UNKNOWN_STEPS, RunSpec, TrainConfig, check_metric

MAX_RUNS = 100_000  # a larger grid is a mistake in its axes
MAX_KEYS = 1000  # of a row; the time for a key grows with their number
MAX_MATCHES = 10_000_000  # rows x entries of exclude


def expand(
    grid: Grid, fingerprints: Mapping[str, str], rows: list[GridRow] | None = None
) -> list[RunSpec]:
    """All runs of the grid: row by row, within a row pack by pack, on each pack seed by seed.

    Args:
        grid: the grid.
        fingerprints: data set name -> fingerprint of its packed contents.
        rows: the result of `expand_rows` for this grid, or some of it. None: all rows.

    Raises:
        ConfigError: all problems of all rows, a duplicate row, an unknown reference or metric.
    """
    if rows is None:
        rows = expand_rows(grid)
    runs = [
        run
        for row in rows
        for pack in row.packs
        for run in runs_on(grid, row, pack, grid.seeds, fingerprints[pack])
    ]
    if any(row.config.init_from for row in rows):
        return with_sources(grid, runs, expand_rows(grid), fingerprints)
    return runs


def with_values(grid: Grid, row: GridRow, name: str, values: Overrides) -> GridRow:
    """A row with another name, and with values that override it.

    Raises:
        ConfigError: the config with these values is not valid.
    """
    changed = _row(grid, name, row.variant, row.overrides | values)
    return replace(changed, packs=row.packs)


_newest: tuple[Grid, list[GridRow]] | None = None  # the grid that was expanded last, and its rows


def expand_rows(grid: Grid) -> list[GridRow]:
    """The rows of the grid's table, in the order of the file.

    A command needs them several times. So the rows of the same object are made once.

    Raises:
        ConfigError: as `expand`.
    """
    global _newest
    if _newest is None or _newest[0] is not grid:
        _newest = grid, _expand_rows(grid)
    return list(_newest[1])


def _expand_rows(grid: Grid) -> list[GridRow]:
    named = grid.rows()
    grid.check_settings()
    exclusion = Exclusion(grid)
    rows, problems = [], list[tuple[str, str]]()
    for name, variant, overrides in _combinations(grid, named or {"": {}}):
        if exclusion.matches(variant, overrides):
            continue
        try:
            rows.append(_row(grid, name, variant, overrides))
        except ConfigError as error:
            problems += [(name, line) for line in str(error).splitlines()]
            if _are_too_many(problems):
                lines = group_by_row(problems)[:MAX_PROBLEMS]
                lines.append("and more problems. Not all rows were checked")
                raise ConfigError("\n".join(_of_grid(grid, lines))) from None
    if lines := [*_of_grid(grid, group_by_row(problems)), *exclusion.problems()]:
        raise ConfigError("\n".join(lines))
    _check_rows(grid, rows)
    return rows


def _of_grid(grid: Grid, lines: list[str]) -> list[str]:
    return [f"grid {grid.name!r}, {line}" for line in lines]


def _are_too_many(problems: list[tuple[str, str]]) -> bool:
    different = {line for _, line in problems[: MAX_PROBLEMS * 10]}
    return len(problems) > 10_000 or len(different) > MAX_PROBLEMS


def _combinations(grid: Grid, named: dict[str, Overrides]) -> Iterator[tuple[str, str, Overrides]]:
    """Yield (row name, variant, overrides) of every combination, excluded ones too."""
    choices: list[list[Overrides]] = [
        [{key: value} for value in values] for key, values in grid.axes.items()
    ]
    for group in grid.zip:
        columns = [[(key, value) for value in values] for key, values in group.items()]
        choices.append([dict(pairs) for pairs in zip(*columns, strict=True)])
    _check_size(grid, len(named), choices)
    combinations = []
    for (variant, overrides), parts in itertools.product(
        named.items(), itertools.product(*choices)
    ):
        swept = {key: value for part in parts for key, value in part.items()}
        combinations.append((_name(variant, swept), variant, overrides, swept))
    count = Counter(name for name, _, _, _ in combinations)
    for name, variant, overrides, swept in combinations:
        unique = name or grid.reference
        if count[name] > 1:  # the names of the values are equal, such as those of a/b and ab
            unique += f"-{_hash(swept)}"
        own = {k: v for k, v in (overrides | swept).items() if k not in grid.settings}
        yield short_name(unique), variant, own | grid.settings


def _check_size(grid: Grid, named: int, choices: list[list[Overrides]]) -> None:
    per_row = len(grid.seeds)
    if grid.tune:
        per_row += grid.tune.trials * len(grid.tune.seeds)
    count = named * per_row * max(1, len(grid.packs))
    for choice in choices:
        count *= len(choice)
    if count > MAX_RUNS:
        raise ConfigError(
            f"grid {grid.name!r} expands to {count:,} runs, more than {MAX_RUNS:,}. "
            f"Shorten its axes"
        )
    if count * len(grid.exclude) > MAX_MATCHES:
        raise ConfigError(
            f"grid {grid.name!r}: {len(grid.exclude):,} entries of exclude are too many. "
            f"Write fewer rows"
        )


def _name(variant: str, swept: Overrides) -> str:
    values = [f"{key.rsplit('.', 1)[-1]}-{_name_part(value)}" for key, value in swept.items()]
    if variant:
        values.insert(0, variant)
    return "_".join(values)


def _name_part(value: Any) -> str:
    """A value as part of a row's name."""
    if isinstance(value, list):
        return ".".join(_name_part(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return re.sub(r"[^A-Za-z0-9._-]", "", str(value)) or "empty"


def _hash(swept: Overrides) -> str:
    return hashlib.sha256(json.dumps(swept, default=str).encode()).hexdigest()[:8]


def _row(grid: Grid, name: str, variant: str, overrides: Overrides) -> GridRow:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"the name does not match {NAME_PATTERN}. Name the combinations under variants"
        )
    if (keys := len(grid.base) + len(overrides)) > MAX_KEYS:
        raise ConfigError(f"the row has {keys:,} keys, more than {MAX_KEYS:,}. Remove some")
    content: dict[str, Any] = {"resources": apply_overrides({}, grid.resources)}
    file: Path | None = None
    # One by one: keys after the name of a DeepSpeed file change its content.
    for key, value in [*grid.base.items(), *overrides.items()]:
        content = apply_overrides(content, {key: value})
        if isinstance(content.get("deepspeed"), str):
            file, content["deepspeed"] = _deepspeed_file(content["deepspeed"], grid.deepspeed_files)
    if "seed" in content:
        raise ConfigError("key 'seed' does not belong in a row. List the seeds under `seeds`")
    if "pack_seed" in content:
        raise ConfigError(
            "key 'pack_seed' does not belong in a row. A grid with several `packs` sets it. "
            "Remove it"
        )
    if grid.packs:
        data = content.get("data")
        if isinstance(data, dict) and "name" in data:
            raise ConfigError(
                "key 'data.name' does not belong in a row if `packs` lists the data. Remove one"
            )
        content = apply_overrides(content, {"data.name": grid.packs[0]})
    content = _with_one_length(content)
    if "own_code" in content:
        raise ConfigError(
            "key 'own_code' does not belong in a row. A grid with `code` sets it. Remove it"
        )
    resources, config = _validated(content, partial(_find, grid.source, variant, file))
    config = with_own_code(grid, config)
    if config.epochs is not None:  # the plan knows the size of the data
        config = config.model_copy(update={"steps": UNKNOWN_STEPS})
    packs = grid.packs or (config.data.name,)
    return GridRow(name, config, resources, packs, variant, overrides)


def _with_one_length(content: dict[str, Any]) -> dict[str, Any]:
    """A row's content without the one of steps and epochs that is null."""
    content = dict(content)
    if content.get("epochs") is None:
        content.pop("epochs", None)
        return content
    if content.get("steps") is None:
        content.pop("steps", None)
        return content
    raise ConfigError(
        f"steps is {content['steps']!r} and epochs is {content['epochs']!r}: both give the length "
        f"of the training. Keep one. A row replaces the one of base with null, such as "
        f"`steps: null`"
    )


def _validated(content: dict[str, Any], find: Find) -> tuple[Resources, TrainConfig]:
    """Resources and config of a row. An error has the problems of both."""
    rest = {key: value for key, value in content.items() if key != "resources"}

    def find_resource(path: Sequence[int | str], value: Any) -> Entry | None:
        return find(("resources", *path), value)

    try:
        resources = validate(Resources, content["resources"], "resources", find_resource)
    except ConfigError as error:
        try:
            validate(TrainConfig, rest, find=find)
        except ConfigError as more:
            raise ConfigError(f"{more}\n{error}") from None
        raise
    return resources, validate(TrainConfig, rest, find=find)


def _find(
    source: SourceText | None,
    variant: str,
    file: Path | None,
    path: Sequence[int | str],
    value: Any,
) -> Entry | None:
    """The entry that gave a row this value: of the grid's file, of --set, or its DeepSpeed file."""
    entry = source.of_row(variant, path, value) if source else None
    if entry is None and file and path[0] == "deepspeed":
        return Entry((), None, None, str(file))
    return entry


def check_deepspeed_files(grid: Grid) -> None:
    """Check that the files still have the content with which the rows were made.

    A notebook may have read the grid hours ago.

    Raises:
        ConfigError: a file was changed or deleted since.
    """
    for name, (path, content) in grid.deepspeed_files.items():
        if _deepspeed_file(name, {})[1] != content:
            raise ConfigError(
                f"DeepSpeed file {path} was changed after the grid was read. Repeat the command; "
                f"in Python, call load_grid again"
            )


def _deepspeed_file(name: str, files: DeepSpeedFiles) -> tuple[Path, Overrides]:
    """Path and content of the DeepSpeed file of this name."""
    if name not in files:
        path = find_file("DeepSpeed file", name)
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError(
                f"{path}: got {type(content).__name__}, wanted a DeepSpeed config in braces"
            )
        files[name] = path, content
    return files[name]


def _check_rows(grid: Grid, rows: list[GridRow]) -> None:
    if not rows:
        raise ConfigError(
            f"grid {grid.name!r} has no rows. Write variants, axes, zip or ablate, or exclude fewer"
        )
    names = [row.name for row in rows]
    _check_names(grid, names)
    _check_tuned(grid, rows)
    check_sources(grid, rows)
    first: dict[str, str] = {}  # identity -> row
    sources = [" ".join(source_rows(row)) for row in rows]
    identities = seeded_hashes([row.config for row in rows], sources)
    for row, key in zip(rows, identities, strict=True):
        try:
            _check_metrics(grid, row.config)
        except ConfigError as error:
            raise ConfigError(f"grid {grid.name!r}, row {row.name!r}: {error}") from None
        same = first.setdefault(key, row.name)
        if same != row.name:
            raise ConfigError(
                f"grid {grid.name!r}: rows {same!r} and {row.name!r} train the same thing. "
                f"Remove one"
            )


def _check_metrics(grid: Grid, config: TrainConfig) -> None:
    """Check that a row has the table's metrics, and that their better direction is known."""
    own = config.evaluation.own_metrics
    for metric in (grid.metric, *grid.more_metrics):
        check_metric(metric, config.tasks, config.model.modalities, own=own)
    if is_one_of(grid.metric, own) and "direction" not in grid.model_fields_set:
        raise ConfigError(
            f"metric {grid.metric!r} is of your own code, so its better values are not known. "
            f"Add direction: max or direction: min to the grid"
        )


def _check_tuned(grid: Grid, rows: list[GridRow]) -> None:
    """Check that every row can be tuned in the same way."""
    if grid.tune is None:
        return
    for row in rows:
        try:
            check_row(grid.tune, row.name, row.overrides, grid.settings)
            own = row.config.evaluation.own_metrics
            check_metric(grid.tuning_metric, row.config.tasks, splits=("val",), own=own)
            name = grid.tuning_metric.rpartition("/")[2]
            if is_one_of(name, own) and not is_one_of(grid.metric, {name}):
                raise ConfigError(
                    f"metric {grid.tuning_metric!r} is of your own code, and the grid's direction "
                    f"is that of {grid.metric!r}. Tune with the same metric or a built-in one"
                )
        except ConfigError as error:
            raise ConfigError(f"grid {grid.name!r}, tune, row {row.name!r}: {error}") from None


def _check_names(grid: Grid, names: list[str]) -> None:
    """Check that names are unique, and that `reference` and `sanity` are among them."""
    before = f"grid {grid.name!r}:"
    if grid.reference not in names:
        raise ConfigError(
            f"{before} unknown reference {grid.reference!r}; {nearest(grid.reference, names)}"
        )
    others = [name for name in names if name != grid.reference]
    for name in grid.sanity:
        if name == grid.reference:
            raise ConfigError(
                f"{before} sanity contains {name!r}, which is the reference. Choose other rows; "
                f"{nearest(name, others)}"
            )
        if name not in names:
            raise ConfigError(
                f"{before} sanity contains {name!r}, which is not a row; {nearest(name, others)}"
            )
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"{before} {count} rows have the name {name!r}. Name the combinations under "
                f"variants"
            )
