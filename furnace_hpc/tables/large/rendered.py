"""Keep the rendered texts of rows, so that the next table renders only the rows that changed.

A text is used again only if its signature is the same: of Furnace's code, of what the whole table
decides, and of the row. The signature of a run has the size, modification time and inode of its
files. The cache is never trusted: its name is the digest of its content.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.host.durable_files import replace_file
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.reading.cache import Records
from furnace_hpc.tables.reading.run_files import Record
from furnace_hpc.tables.table import Ablation, Row

PACKAGE = Path(__file__).parents[2]
SUFFIX = ".rows"  # of the cache file, beside the records
NO_FILES = Record()  # of a run without a folder
MIN_RUNS = 500  # a smaller table is rendered faster than a cache is read


class Kept(NamedTuple):
    """A rendered text, and the files beside the run files on which it depends."""

    text: str
    existing: Sequence[str] = ()  # paths that exist
    absent: Sequence[str] = ()  # paths that do not

    def holds(self) -> bool:
        """Whether the same paths still exist."""
        exists = os.path.isfile
        return all(map(exists, self.existing)) and not any(map(exists, self.absent))


class RenderedRows:
    """The texts of the last table and of this one."""

    def __init__(self, place: Path | None, stamps: dict[str, str]) -> None:
        """`place`: folder of the cache, None for no cache. `stamps`: run -> stamps of its files."""
        self._place, self._stamps = place, stamps
        self._before = _load(place) if place else {}
        self._now: dict[str, Kept] = {}
        self._signatures: dict[str, str | None] = {}  # variant -> signature of its row
        self.num_rendered = 0

    def text(self, whole: str, row: Row, records: Records, render: Callable[[], Kept | str]) -> str:
        """The text of a row. `whole`: signature of what decides it beside the row itself."""
        key = self._key(whole, row, records)
        kept = self._before.get(key) if key else None
        if kept is None or not kept.holds():
            self.num_rendered += 1
            rendered = render()
            kept = Kept(rendered) if isinstance(rendered, str) else rendered
        if key:
            self._now[key] = kept
        return kept.text

    def _key(self, whole: str, row: Row, records: Records) -> str | None:
        """The key of a text. None if it is not kept."""
        if self._place is None:
            return None
        if row.variant not in self._signatures:  # a row has several texts
            self._signatures[row.variant] = self._signature(row, records)
        of_row = self._signatures[row.variant]
        return None if of_row is None else _digest(f"{whole}\0{of_row}".encode())

    def _signature(self, row: Row, records: Records) -> str | None:
        """The signature of a row. None if a run changed after its files were listed."""
        runs = []
        for run in row.runs:
            if run.own_spec is None or run.record is not records.by_run.get(run.run_id, run.record):
                return None
            stamps, steps = self._stamps.get(run.run_id), run.own_spec.config.steps
            if stamps is None and run.record != NO_FILES:
                return None
            draw = (run.draw.seed, run.draw.pack)
            runs.append((run.run_id, stamps, vars(run.status), steps, draw, run.result is None))
        changes = [(change.key, change.reference, change.value) for change in row.changes]
        return f"{row.variant}\0{changes!r}\0{runs!r}"

    def store(self) -> None:
        """Write the texts of this table, if they differ from those of the last one."""
        if self._place is None or (not self.num_rendered and len(self._now) == len(self._before)):
            return
        if not self._now:  # no row has a signature: keep what is there
            return
        # If the disk is full, the folder is not writable or its path is not valid UTF-8, the next
        # call renders all rows.
        with suppress(OSError, UnicodeEncodeError):
            _store(self._place, self._now)


@once_per_table
def rendered_rows(ablation: Ablation) -> RenderedRows:
    """The kept rows of a table. Small tables, and runs of other tools, have none."""
    records = ablation.records
    if ablation.source is not None or len(ablation.runs) < MIN_RUNS:
        return RenderedRows(None, {})
    place = GridFolder(ablation.runs[0].folder.path.parent).tables_cache
    stamps = dict(records.frame.select("run", "files").iter_rows())
    return RenderedRows(place, stamps)


def signature(kind: str, *parts: Any) -> str:
    """Signature of what decides the texts of all rows: the code, and some values."""
    return f"{kind}\0{_code()}\0{parts!r}"


@cache
def _code() -> str:
    """Digest of all code of Furnace, and the version of Python."""
    import xxhash

    digest = xxhash.xxh3_128(sys.version.encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _load(place: Path) -> dict[str, Kept]:
    """Load the cache. Empty if there is no sound one."""
    import polars as pl

    for path in sorted(place.glob(f"*{SUFFIX}")):
        with suppress(OSError, pl.exceptions.PolarsError):
            content = read_regular(path, None)
            if path.stem == _digest(content):
                frame = pl.read_parquet(io.BytesIO(content))
                if dict(frame.schema) == _schema():
                    return {key: Kept(*fields) for key, *fields in frame.iter_rows()}
    return {}


def _store(place: Path, texts: dict[str, Kept]) -> None:
    """Write the cache through a temporary file and remove older ones."""
    import polars as pl

    columns = [list(texts), *map(list, zip(*texts.values(), strict=True))]
    frame = pl.DataFrame(dict(zip(_schema(), columns, strict=True)), schema=_schema())
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=1, statistics=False)
    content = buffer.getvalue()
    path = place / f"{_digest(content)}{SUFFIX}"
    place.mkdir(exist_ok=True)
    replace_file(path, content, durable=False)
    for other in place.glob(f"*{SUFFIX}"):
        if other != path:
            other.unlink(missing_ok=True)


def _schema() -> dict[str, Any]:
    import polars as pl

    paths = pl.List(pl.String)
    return {"key": pl.String, "text": pl.String, "existing": paths, "absent": paths}


def _digest(content: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(content)
