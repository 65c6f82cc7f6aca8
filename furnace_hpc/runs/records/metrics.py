"""Write and read the metrics of a run while it trains: one JSON object per line."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from furnace_hpc.host.json_lines import parse_line, read_json_lines, read_tail
from furnace_hpc.host.regular_file import IrregularFile
from furnace_hpc.runs.file_cache import cached_by_stat, once_per_look
from furnace_hpc.runs.folder import TRANSIENT_ERRNOS, RunFolder

MEASURED = {"step_time_s", "samples_per_s", "time_unix_s", "attempt", "data_wait_s", "energy_j"}
MEASURED |= {"model_tflop_s", "mfu", "peak_memory_gib", "peak_reserved_gib"}
"""Keys of records that differ between runs of the same numbers."""


class MetricsFile:
    """Append records to `metrics/<attempt>.jsonl` at once.

    If the disk is full, the records wait in memory and are written when there is space again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._waiting = b""

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. It must contain `step`."""
        self._waiting += (json.dumps(record) + "\n").encode()
        try:
            self._drain()
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS:
                raise

    def close(self) -> None:
        """Write what waits, sync the file and close it.

        Raises:
            OSError: some records could not be written.
        """
        try:
            self._drain()
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _drain(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """All records by step. If attempts share a step, the highest attempt counts."""
    names = [path.stem for path in (folder.path / "metrics").glob("*.jsonl")]
    by_key: dict[tuple[int, str], dict[str, Any]] = {}
    for number in sorted(int(name) for name in names if name.isdigit()):
        for record in _records(folder.metrics(number)):
            by_key[record["step"], record["kind"]] = record | {"attempt": number}
    return [by_key[key] for key in sorted(by_key)]


def records_of_attempt(folder: RunFolder, number: int) -> list[dict[str, Any]]:
    """All complete records of one attempt, in their order. Empty if it wrote none."""
    with suppress(FileNotFoundError):
        return list(_records(folder.metrics(number)))
    return []


@once_per_look
def newest_record(folder: RunFolder, attempt: int) -> dict[str, Any] | None:
    """The newest complete training record of one attempt."""
    return last_record(folder.metrics(attempt))


@cached_by_stat(lambda path, tail_bytes=0: [path])
def last_record(path: Path, tail_bytes: int = 4096) -> dict[str, Any] | None:
    """The newest complete training record of one attempt. Reads only the end of the file."""
    try:
        lines = read_tail(path, tail_bytes).splitlines()
    except (FileNotFoundError, IrregularFile):
        return None
    for line in reversed(lines):
        record = parse_line(line)
        if record and _is_metrics(record) and record["kind"] == "train":
            return record
    return None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(IrregularFile):
        for record in read_json_lines(path):
            if _is_metrics(record):
                yield record


def _is_metrics(record: dict[str, Any]) -> bool:
    return isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)
