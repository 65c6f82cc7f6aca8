"""Cache the run files of a grid in one Parquet file, `runs/<grid>/cache/<digest>.parquet`.

A run is read again if the modification time, size or inode of one of its files has changed. The
cache is never trusted: its name is the digest of its content. A damaged file, or one of another
format, is removed.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnace_hpc.host.durable_files import replace_file
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.reading.run_files import ListedRun, Record, list_runs, read_listed

if TYPE_CHECKING:
    import polars as pl

FORMAT = "1"  # raise it when run_files.py reads anything differently
CHUNK = 1000  # runs that are held as Python objects at a time


@dataclass(frozen=True)
class Records:
    """Content of the run files in a grid's folder."""

    frame: "pl.DataFrame"  # one row per run, columns as in `_schema`
    foreign: tuple[str, ...]  # files and folders that no run has written
    num_read: int  # runs that were not in the cache
    # run whose folder is a link -> target of the link
    links: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def by_run(self) -> dict[str, Record]:
        """Run id -> its record."""
        columns = self.frame.select("run", *Record._fields)
        return {run: Record(*fields) for run, *fields in columns.iter_rows()}

    def points(self, runs: Sequence[str], metrics: Collection[str]) -> "pl.DataFrame":
        """Values of some metrics, as rows (index in `runs`, metric, step, value), in order."""
        import polars as pl

        wanted = pl.DataFrame(
            {"run": runs, "place": range(len(runs))}, schema={"run": pl.String, "place": pl.UInt32}
        )
        lists = wanted.join(self.frame, on="run", maintain_order="left")
        points = lists.select("place", "metric", "step", "value").explode("metric", "step", "value")
        return points.filter(pl.col("metric").is_in(list(metrics)))


def no_records() -> Records:
    """The records of runs that have no folder."""
    import polars as pl

    return Records(pl.DataFrame(schema=_schema()), (), 0)


def read_records(folder: GridFolder) -> Records:
    """Read the records of all runs in a grid's folder. Unchanged files come from the cache."""
    import polars as pl

    listed, foreign = list_runs(folder.path)
    cached = _load(folder.tables_cache)
    frame = cached
    if cached.height:
        now = pl.DataFrame(
            {"run": [run.run for run in listed], "files": [run.files for run in listed]}
        )
        frame = cached.join(now.cast(pl.String), on=["run", "files"], how="semi")
    unchanged = set(frame["run"])
    changed = [run for run in listed if run.run not in unchanged]
    if changed or frame.height != cached.height:
        chunks = [changed[at : at + CHUNK] for at in range(0, len(changed), CHUNK)]
        frame = pl.concat([frame, *map(_frame, chunks)]).sort("run")
        # If the disk is full or the folder is not writable, the next call reads everything again.
        with suppress(OSError):
            _store(folder.tables_cache, frame)
    links = {run.run: run.link for run in listed if run.link}
    return Records(frame, tuple(foreign), len(changed), links)


def _frame(runs: Sequence[ListedRun]) -> "pl.DataFrame":
    """Read the files of some runs."""
    import polars as pl

    columns: dict[str, list[Any]] = {name: [] for name in _schema()}
    for listed in runs:
        record, points = read_listed(listed)
        line = (listed.run, listed.files, *record, *points)
        for column, value in zip(columns.values(), line, strict=True):
            column.append(value)
    return pl.DataFrame(columns, schema=_schema())


def _schema() -> dict[str, Any]:
    import polars as pl

    fields = {
        "data": pl.String,
        "fingerprint": pl.String,
        "result": pl.Binary,
        "attempts": pl.Binary,
    }
    counts = {"lost_steps": pl.Int64, "torn": pl.Int64}
    points = {"metric": pl.List(pl.String), "step": pl.List(pl.Int64), "value": pl.List(pl.Float64)}
    return {"run": pl.String, "files": pl.String, **fields, **counts, **points}


def _load(place: Path) -> "pl.DataFrame":
    """Load the cache. Empty if there is no sound one."""
    import polars as pl

    for path in sorted(place.glob("*.parquet")):
        with suppress(OSError, pl.exceptions.PolarsError):
            content = read_regular(path, None)
            if path.stem == _digest(content):
                frame = pl.read_parquet(io.BytesIO(content))
                if dict(frame.schema) == _schema():
                    return frame
    return pl.DataFrame(schema=_schema())


def _store(place: Path, frame: "pl.DataFrame") -> None:
    """Write the cache through a temporary file and remove older ones.

    It is not synced: after a power cut the digest shows whether the file is complete.
    """
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=1, statistics=False)
    content = buffer.getvalue()
    path = place / f"{_digest(content)}.parquet"
    place.mkdir(exist_ok=True)
    replace_file(path, content, durable=False)
    for other in place.glob("*.parquet"):
        if other != path:
            other.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    import xxhash

    return f"{FORMAT}-{xxhash.xxh3_128_hexdigest(content)}"
