"""Lines of metrics that a run leaves while it trains: written, and read without trusting the last one."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from furnace_hpc.host.regular_file import IrregularFile, open_regular
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import TRANSIENT_ERRNOS, RunFolder


class MetricsFile:
    """Appends records to `metrics/<attempt>.jsonl`: one JSON object a line, written at once.

    What a full disk does not take is kept, and written when there is space again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._waiting = b""

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it must carry `step`."""
        self._waiting += (json.dumps(record) + "\n").encode()
        try:
            self._drain()
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS:
                raise

    def close(self) -> None:
        """Make the lines durable.

        Raises:
            OSError: some could not be written.
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
    """All records in order of step; for a step the highest attempt wins; a torn last line is left out."""
    numbers = sorted(
        int(path.stem) for path in (folder.path / "metrics").glob("*.jsonl") if path.stem.isdigit()
    )
    by_key: dict[tuple[int, str], dict[str, Any]] = {}
    for number in numbers:
        for record in _lines(folder.metrics(number)):
            by_key[record["step"], record["kind"]] = record | {"attempt": number}
    return [by_key[key] for key in sorted(by_key)]


def records_of_attempt(folder: RunFolder, number: int) -> list[dict[str, Any]]:
    """All whole records of one attempt, in their order; none where it wrote none."""
    path = folder.metrics(number)
    return list(_lines(path)) if path.exists() else []


@cached_by_stat(lambda path, tail_bytes=0: [path])
def last_record(path: Path, tail_bytes: int = 4096) -> dict[str, Any] | None:
    """The newest whole training record of one attempt, reading only the file's end."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail_bytes))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except (FileNotFoundError, IrregularFile):
        return None
    for line in reversed(lines):
        record = _parse(line)
        if record and record["kind"] == "train":
            return record
    return None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with (
        suppress(IrregularFile),
        open_regular(path, "r", encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            if record := _parse(line):
                yield record


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_one = (
        isinstance(record, dict)
        and isinstance(record.get("step"), int)
        and isinstance(record.get("kind"), str)
    )
    return record if is_one else None
