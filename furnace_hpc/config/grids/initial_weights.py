"""Rows that start from the weights of other rows (`init_from`): check them, and name their runs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.grids.row import GridRow, runs_on
from furnace_hpc.config.identity import identity_sha256
from furnace_hpc.config.sections.initial_weights import InitialWeights
from furnace_hpc.config.train_config import RunSpec

OF_ONE_MODALITY = ("encoders", "norms", "unimodal")  # parts of the network that name a modality
Rows = Mapping[str, GridRow]


def source_rows(row: GridRow) -> list[str]:
    """The rows of the same grid whose weights a row starts from."""
    return [source.variant for source in row.config.init_from if source.variant]


def check_sources(grid: Grid, rows: Sequence[GridRow]) -> None:
    """Check `init_from` of all rows, and the grid's `sources`.

    Raises:
        ConfigError: a source is not a row, lacks a part, has no run for a pack, or starts from the
            row that starts from it. Or the reference is among `sources`.
    """
    named = {row.name: row for row in rows}
    for name in grid.sources:
        if name not in named:
            raise _error(grid, "", f"sources contains {name!r}, which is not a row", name, named)
        if name == grid.reference:
            raise _error(grid, "", f"sources contains the reference {name!r}. Remove it")
        if name in grid.sanity:
            problem = f"{name!r} is in sources and in sanity, and the table leaves out sources"
            raise _error(grid, "", f"{problem}. Remove it from one of them")
    for row in rows:
        for source in row.config.init_from:
            _check_source(grid, row, source, named)
    given = {name for row in rows for name in source_rows(row)}
    unused = [name for name in grid.sources if name not in given]
    if unused:
        raise _error(
            grid, "", f"sources contains {unused[0]!r}, which no init_from names. Remove it"
        )
    for row in rows:
        _check_circle(grid, [row.name], named)


def check_folders(rows: Iterable[GridRow]) -> None:
    """Check that the runs and models that `init_from` names are there.

    Raises:
        ConfigError: a line for each folder that is missing, or is not finished.
    """
    sources = dict.fromkeys(source for row in rows for source in row.config.init_from)
    problems = []
    for source in sources:
        if source.run and not (Path(source.run) / "result.json").is_file():
            problems.append(
                f"init_from.run {source.run!r} is no finished run: it has no result.json. Correct "
                f"the path, or finish that run first"
            )
        if source.model and not (Path(source.model) / "config.json").is_file():
            problems.append(
                f"init_from.model {source.model!r} is no exported model: it has no config.json. "
                f"Correct the path, or make one with `furnace export`"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def with_sources(
    grid: Grid, runs: Sequence[RunSpec], rows: Sequence[GridRow], fingerprints: Mapping[str, str]
) -> list[RunSpec]:
    """The runs with the run ids and identities of the runs that they start from.

    Args:
        grid: the grid.
        runs: some of its runs.
        rows: all of its rows.
        fingerprints: data set name -> fingerprint of its packed contents.
    """
    named = {row.name: row for row in rows}
    return [_resolved(grid, run, named, fingerprints) for run in runs]


def _resolved(grid: Grid, run: RunSpec, rows: Rows, fingerprints: Mapping[str, str]) -> RunSpec:
    if not any(source.variant for source in run.config.init_from):
        return run
    found = []
    for source in run.config.init_from:
        if source.variant:
            row = rows[source.variant]
            pack = _pack_of(row, run.config.data.name)
            (first,) = runs_on(grid, row, pack, [run.config.seed], fingerprints[pack])
            first = _resolved(grid, first, rows, fingerprints)
            changes = {"run_id": first.run_id, "identity": _identity(first)}
            source = source.model_copy(update=changes)
        found.append(source)
    config = run.config.model_copy(update={"init_from": tuple(found)})
    return run.model_copy(update={"config": config})


def _pack_of(row: GridRow, wanted: str) -> str:
    """The pack of the source's run: the same, or the only one of a row on other data."""
    return wanted if wanted in row.packs else row.packs[0]


def _identity(run: RunSpec) -> str:
    """A hash of all that decides a run's numbers. A run id has only 8 digits of it."""
    return identity_sha256(run.config, run.data_fingerprint)


def _check_source(grid: Grid, row: GridRow, source: InitialWeights, rows: Rows) -> None:
    if source.run_id or source.identity:
        raise _error(
            grid, row.name, "init_from has run_id or identity, which the grid sets. Remove them"
        )
    if source.variant is None:
        return
    if grid.tune:
        raise _error(
            grid,
            row.name,
            f"init_from names row {source.variant!r}, and the grid has `tune`, whose trials use "
            f"other seeds than that row. Tune the source in a grid of its own, and give init_from "
            f"its run or exported model",
        )
    if source.variant == row.name:
        raise _error(grid, row.name, "init_from names the row itself. Name another row")
    if source.variant not in rows:
        problem = f"init_from names {source.variant!r}, which is not a row"
        raise _error(grid, row.name, problem, source.variant, rows)
    other = rows[source.variant]
    if len(other.packs) > 1 and set(row.packs) - set(other.packs):
        raise _error(
            grid,
            row.name,
            f"init_from names row {source.variant!r}, which has no run on {row.packs[0]!r} and "
            f"several others. Give it one data set",
        )
    for part in source.parts:
        _check_part(grid, row, other, part)


def _check_part(grid: Grid, row: GridRow, source: GridRow, part: str) -> None:
    """A part that names a modality needs it in both networks. The rank checks all other parts."""
    first, _, rest = part.partition(".")
    modality = rest.partition(".")[0]
    if first not in OF_ONE_MODALITY or not modality:
        return
    for one in (row, source):
        modalities = one.config.model.modalities
        if first != "unimodal" and modality not in modalities:
            raise _error(
                grid,
                row.name,
                f"init_from.parts has {part!r}, and row {one.name!r} has no {modality} (it has "
                f"{', '.join(modalities)}). Remove the part, or add the modality",
            )


def _check_circle(grid: Grid, path: list[str], rows: Rows) -> None:
    for name in source_rows(rows[path[-1]]):
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise _error(grid, path[0], f"init_from has a circle: {circle}. Remove one of them")
        _check_circle(grid, [*path, name], rows)


def _error(
    grid: Grid, row: str, problem: str, name: str = "", rows: Rows | None = None
) -> ConfigError:
    place = f"grid {grid.name!r}, row {row!r}" if row else f"grid {grid.name!r}"
    fix = f"; {nearest(name, list(rows))}" if rows else ""
    return ConfigError(f"{place}: {problem}{fix}")
