"""All runs of a grid as one Parquet file, `runs/<grid>/cache/<digest>.parquet`: only what changed is read again.

A run is read again when any of its files has another time, size or inode than when it was read. The cache is never
trusted: its name is the digest of its content, and one that is damaged, or of another format, is thrown away.
"""

import io
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.run_files import Listed, Record, list_runs, read_listed

if TYPE_CHECKING:
    import polars as pl

FORMAT = "1"  # to be raised when records.py reads anything otherwise
AT_ONCE = 1000  # runs that are held as Python objects


@dataclass(frozen=True)
class Records:
    """What the files of all runs in a grid's folder say."""

    frame: "pl.DataFrame"  # a line a run: `_schema`
    foreign: tuple[str, ...]  # what lies among the runs and was written by none
    num_read: int  # runs whose files were read now, and not taken from the cache
    # run whose folder is a link -> the run it leads to
    links: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def by_run(self) -> dict[str, Record]:
        """Run id -> its record."""
        columns = self.frame.select("run", *Record._fields)
        return {run: Record(*fields) for run, *fields in columns.iter_rows()}

    def points(self, runs: Sequence[str], metrics: Collection[str]) -> "pl.DataFrame":
        """All values of some metrics, as lines (place in `runs`, metric, step, value), by place and by step."""
        import polars as pl

        asked = pl.DataFrame(
            {"run": runs, "place": range(len(runs))}, schema={"run": pl.String, "place": pl.UInt32}
        )
        lists = asked.join(self.frame, on="run", maintain_order="left").select(
            "place", "metric", "step", "value"
        )
        return lists.explode("metric", "step", "value").filter(
            pl.col("metric").is_in(list(metrics))
        )


def read_records(folder: GridFolder) -> Records:
    """The records of all runs in a grid's folder; files that have not changed are not read again."""
    import polars as pl

    listed, foreign = list_runs(folder.path)
    known = _load(folder.tables_cache)
    now = pl.DataFrame({"run": [one.run for one in listed], "files": [one.files for one in listed]})
    kept = (
        known
        if not known.height
        else known.join(now.cast(pl.String), on=["run", "files"], how="semi")
    )
    unchanged = set(kept["run"])
    fresh = [one for one in listed if one.run not in unchanged]
    frame = kept
    if fresh or kept.height != known.height:
        frame = pl.concat(
            [kept, *(_frame(fresh[at : at + AT_ONCE]) for at in range(0, len(fresh), AT_ONCE))]
        ).sort("run")
        # a grid of somebody else's, or a full disk: the next look reads everything again
        with suppress(OSError):
            _store(folder.tables_cache, frame)
    return Records(
        frame, tuple(foreign), len(fresh), {one.run: one.link for one in listed if one.link}
    )


def _frame(some: Sequence[Listed]) -> "pl.DataFrame":
    """What the files of some runs say, read now."""
    import polars as pl

    columns: dict[str, list[Any]] = {name: [] for name in _schema()}
    for listed in some:
        record, points = read_listed(listed)
        names, steps, values = zip(*points, strict=True) if points else ((), (), ())
        line = (listed.run, listed.files, *record, names, steps, [float(value) for value in values])
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
    """The cache; empty where there is none that can be trusted."""
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
    """Write the cache whole, aside, and take others away. A power cut that tears it is seen by its digest."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=1, statistics=False)
    content = buffer.getvalue()
    path = place / f"{_digest(content)}.parquet"
    aside = place / f".{path.name}.{uuid.uuid4().hex[:8]}"
    place.mkdir(exist_ok=True)
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    for other in place.glob("*.parquet"):
        if other != path:
            other.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    import xxhash

    return f"{FORMAT}-{xxhash.xxh3_128_hexdigest(content)}"
