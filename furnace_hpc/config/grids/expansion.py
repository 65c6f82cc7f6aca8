"""Expansion: a grid to its rows, and rows x packs x seeds to runs, in a fixed order."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from furnace_hpc.config.base import NAME_PATTERN, short_name
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.grids.grid import Grid, apply_overrides
from furnace_hpc.config.identity import identity_hash
from furnace_hpc.config.parsing.lookup import find_file, read_json
from furnace_hpc.config.parsing.source_text import Entry, Written
from furnace_hpc.config.parsing.text_safety import short
from furnace_hpc.config.parsing.validation import MAX_PROBLEMS, Find, group_by_row, validate
from furnace_hpc.config.train_config import Resources, RunSpec, TrainConfig, check_metric

MAX_RUNS = 100_000  # a grid beyond this is a slip in its axes
MAX_KEYS = 1000  # of a row: each costs time that grows with their number
_NOTHING = object()
MAX_MATCHES = 10_000_000  # rows x entries of exclude


@dataclass(frozen=True)
class Row:
    """One row of the table: a name and what it is trained with (seed and pack are still the config's own)."""

    name: str
    config: TrainConfig
    resources: Resources
    packs: tuple[str, ...]  # data sets that it is trained on: one, unless the grid has `packs`


def expand(
    grid: Grid, fingerprints: Mapping[str, str], rows: list[Row] | None = None
) -> list[RunSpec]:
    """All runs of the grid: row by row, within a row pack by pack, and on each pack seed by seed.

    Args:
        grid: the grid.
        fingerprints: data set name -> fingerprint of its packed contents.
        rows: what `expand_rows` said of this grid, where that is known.

    Raises:
        ConfigError: every problem of every row at once; duplicate rows; an unknown reference or metric.
    """
    rows = expand_rows(grid) if rows is None else rows
    return [
        RunSpec.model_construct(  # of parts that have been checked; ten times as fast
            grid=grid.name,
            variant=row.name,
            config=row.config.model_copy(update={"seed": seed, "data": data}),
            resources=row.resources,
            data_fingerprint=fingerprints[data.name],
        )
        for row in rows
        for data in (row.config.data.model_copy(update={"name": pack}) for pack in row.packs)
        for seed in grid.seeds
    ]


def expand_rows(grid: Grid) -> list[Row]:
    """The rows of the grid's table, in the file's order.

    Raises:
        ConfigError: as `expand`.
    """
    named = grid.rows()
    grid.check_settings()
    files: dict[str, tuple[Path, dict[str, Any]]] = {}
    rows, problems, used = [], list[tuple[str, str]](), set()
    base, entries = _flatten(grid.base), [_flatten(entry) for entry in grid.exclude]
    for name, variant, overrides in _combinations(grid, named or {"": {}}):
        match = (
            _excluded(_flatten(overrides) | {"variant": variant}, base, entries)
            if entries
            else set[int]()
        )
        used |= match
        if match:
            continue
        try:
            rows.append(_row(grid, name, variant, overrides, files))
        except ConfigError as error:
            problems += [(name, line) for line in str(error).splitlines()]
            if (
                len(problems) > 10_000
                or len({line for _, line in problems[: MAX_PROBLEMS * 10]}) > MAX_PROBLEMS
            ):
                lines = group_by_row(problems)[:MAX_PROBLEMS]
                more = "and more problems; not all rows were checked"
                raise ConfigError(
                    "\n".join(f"grid {grid.name!r}, {line}" for line in [*lines, more])
                ) from None
    lines = [f"grid {grid.name!r}, {line}" for line in group_by_row(problems)]
    lines += [_useless(grid, number) for number in range(len(grid.exclude)) if number not in used]
    if lines:
        raise ConfigError("\n".join(lines))
    _check_rows(grid, rows)
    return rows


def _combinations(grid: Grid, named: dict[str, Overrides]) -> Iterator[tuple[str, str, Overrides]]:
    """(row name, variant, overrides) of every combination, before exclusion."""
    choices: list[list[Overrides]] = [
        [{key: value} for value in values] for key, values in grid.axes.items()
    ]
    for group in grid.zip:
        columns = [[(key, value) for value in values] for key, values in group.items()]
        choices.append([dict(pairs) for pairs in zip(*columns, strict=True)])
    count = len(named) * len(grid.seeds) * max(1, len(grid.packs))
    for choice in choices:
        count *= len(choice)
    if count > MAX_RUNS:
        raise ConfigError(
            f"grid {grid.name!r} expands to {count:,} runs, more than {MAX_RUNS:,}: shorten its axes"
        )
    if count * len(grid.exclude) > MAX_MATCHES:
        raise ConfigError(
            f"grid {grid.name!r}: {len(grid.exclude):,} entries of exclude are too many: write fewer rows"
        )
    found = list(itertools.product(named.items(), itertools.product(*choices)))
    names = Counter(_name(variant, swept) for (variant, _), swept in found)
    for (variant, overrides), swept in found:
        combined = _merged(swept)
        name = _name(variant, swept) or grid.reference
        if names[name] > 1:  # values that a name cannot tell apart, such as a/b and ab
            name += f"-{hashlib.sha256(json.dumps(combined, default=str).encode()).hexdigest()[:8]}"
        laid_over = {
            key: value for key, value in (overrides | combined).items() if key not in grid.settings
        }
        yield short_name(name), variant, laid_over | grid.settings


def _name(variant: str, swept: Sequence[Overrides]) -> str:
    parts = [variant] if variant else []
    return "_".join(
        parts
        + [f"{key.rsplit('.', 1)[-1]}-{_word(value)}" for key, value in _merged(swept).items()]
    )


def _merged(swept: Sequence[Overrides]) -> Overrides:
    return {key: value for part in swept for key, value in part.items()}


def _row(
    grid: Grid,
    name: str,
    variant: str,
    overrides: Overrides,
    files: dict[str, tuple[Path, Overrides]],
) -> Row:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"the name must match {NAME_PATTERN}: name the combinations under variants"
        )
    if (keys := len(grid.base) + len(overrides)) > MAX_KEYS:
        raise ConfigError(f"the row has {keys:,} keys: no config has more than {MAX_KEYS:,}")
    content: dict[str, Any] = {"resources": apply_overrides({}, grid.resources)}
    file: Path | None = None
    # one by one: a file's name can be refined after it
    for key, value in [*grid.base.items(), *overrides.items()]:
        content = apply_overrides(content, {key: value})
        if isinstance(content.get("deepspeed"), str):
            file, content["deepspeed"] = _deepspeed_file(content["deepspeed"], files)
    if "seed" in content:
        raise ConfigError("key 'seed' does not belong in a row: list the seeds under `seeds`")
    if grid.packs:
        if isinstance(data := content.get("data"), dict) and "name" in data:
            raise ConfigError(
                "key 'data.name' does not belong in a row where `packs` lists the data: remove one"
            )
        content = apply_overrides(content, {"data.name": grid.packs[0]})
    resources, config = _validated(content, partial(_find, grid.written, variant, file))
    return Row(name, config, resources, grid.packs or (config.data.name,))


def _validated(content: dict[str, Any], find: Find) -> tuple[Resources, TrainConfig]:
    """Resources and config of a row; the problems of both come together."""
    resources, rest = (
        content["resources"],
        {key: value for key, value in content.items() if key != "resources"},
    )
    try:
        wish = validate(
            Resources, resources, "resources", lambda path, value: find(("resources", *path), value)
        )
    except ConfigError as error:
        try:
            validate(TrainConfig, rest, find=find)
        except ConfigError as more:
            raise ConfigError(f"{more}\n{error}") from None
        raise
    return wish, validate(TrainConfig, rest, find=find)


def _find(
    written: Written | None, variant: str, file: Path | None, path: Sequence[int | str], value: Any
) -> Entry | None:
    """Where a row's value stands: in the grid's file, in --set, or in its DeepSpeed file."""
    entry = written.of_row(variant, path, value) if written else None
    return (
        Entry((), None, None, str(file)) if not entry and file and path[0] == "deepspeed" else entry
    )


def _deepspeed_file(name: str, files: dict[str, tuple[Path, Overrides]]) -> tuple[Path, Overrides]:
    """Path and content of the DeepSpeed file that a name means."""
    if name not in files:
        path = find_file("DeepSpeed file", name)
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError(
                f"{path}: got {type(content).__name__}, wanted a DeepSpeed config in braces"
            )
        files[name] = path, content
    return files[name]


def _excluded(
    flat: dict[str, Any], base: dict[str, Any], entries: list[dict[str, Any]]
) -> set[int]:
    """Numbers of the exclude entries that a row of these dotted keys, laid over those of the base, matches."""
    return {
        number
        for number, entry in enumerate(entries)
        if all(_same(flat.get(key, base.get(key, _NOTHING)), value) for key, value in entry.items())
    }


def _useless(grid: Grid, number: int) -> str:
    """The problem of an exclude entry that matches no row."""
    entry = grid.exclude[number]
    found = (
        [grid.written.at(("exclude", number, key), value) for key, value in entry.items()]
        if grid.written
        else []
    )
    there = [one for one in found if one]
    read = [typed for one in there if "(read as" in (typed := one.as_typed() or "")]
    where = f" ({'; '.join([there[0].place, *read])})" if there else ""
    return f"grid {grid.name!r}: exclude[{number}] {short(str(entry), 200)} matches no row{where}"


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one kind: 1 is 1.0, but neither true nor '1'."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _check_rows(grid: Grid, rows: list[Row]) -> None:
    if not rows:
        raise ConfigError(
            f"grid {grid.name!r} has no rows: give variants, axes, zip or ablate, and exclude fewer"
        )
    names = [row.name for row in rows]
    if grid.reference not in names:
        raise ConfigError(
            f"grid {grid.name!r}: unknown reference {grid.reference!r}; {nearest(grid.reference, names)}"
        )
    for name in grid.sanity:
        if name not in names or name == grid.reference:
            why = "the reference itself" if name == grid.reference else "no row"
            valid = [other for other in names if other != grid.reference]
            raise ConfigError(
                f"grid {grid.name!r}: sanity names {name!r}, which is {why}; {nearest(name, valid)}"
            )
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"grid {grid.name!r}: {count} rows are named {name!r}: name the combinations under variants"
            )
    first: dict[str, str] = {}
    for row in rows:
        try:
            check_metric(grid.metric, row.config.tasks, row.config.model.modalities)
        except ConfigError as error:
            raise ConfigError(f"grid {grid.name!r}, row {row.name!r}: {error}") from None
        same = first.setdefault(identity_hash(row.config, ""), row.name)
        if same != row.name:
            raise ConfigError(
                f"grid {grid.name!r}: rows {same!r} and {row.name!r} train the same thing: remove one"
            )


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def _word(value: Any) -> str:
    """A value as part of a row's name."""
    if isinstance(value, list):
        return "+".join(_word(item) for item in value).replace("+", ".")
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return re.sub(r"[^A-Za-z0-9._-]", "", str(value)) or "empty"
