"""Records that a run leaves: lines of metrics while it trains, and its result at the end."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from furnace_hpc.runs.folder import PASSING, RunFolder, write_json
from furnace_hpc.runs.unchanged import while_unchanged
from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.fields import Config


class RunResult(Config):
    """`result.json`: written once, last; its presence means the run is done."""

    model_config = ConfigDict(allow_inf_nan=True)  # a run that diverged is a result too

    format: Literal[1] = 1
    run_id: str
    variant: str
    seed: int
    steps: int = Field(description="optimizer steps trained")
    selected_step: int = Field(description="step whose parameters made the metrics, chosen on validation")
    metrics: dict[str, float] = Field(description="<split>/<task>/<metric> at the selected step, whole split")
    parameters_sha256: str = Field(description="SHA-256 of the final fp32 parameters, in name order")
    num_parameters: int = Field(description="trained numbers in the network")
    world_size: int = Field(description="processes of the last attempt")
    num_threads: int = Field(description="torch threads per process; the same count gives the same bits")
    attempts: int = Field(description="number of attempts, this one counted")
    train_s: float = Field(description="seconds in training steps, all attempts that count")
    wall_s: float = Field(description="seconds from first attempt's start to this result")
    samples_per_s: float = Field(description="samples trained per second of training, all processes")
    peak_memory_gib: float = Field(description="GPU: peak allocated; CPU: peak resident; worst process")
    device: str = Field(description="model of GPU or CPU")
    precision: str = Field(description="bf16 or fp32")
    zero_stage: int = Field(description="ZeRO stage, as the engine says")
    data_fingerprint: str
    code_hash: str = Field(description="hash of the sources that decide numbers")
    commit: str | None = Field(description="git commit of the code, with +dirty when the tree was changed")
    versions: dict[str, str] = Field(description="library -> version")


class MetricsFile:
    """Appends records to `metrics/<attempt>.jsonl`: one JSON object a line, written at once.

    What a full disk does not take is kept, and written when there is space again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting = b""

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it must carry `step`."""
        self._waiting += (json.dumps(record) + "\n").encode()
        try:
            self._drain()
        except OSError as error:
            if error.errno not in PASSING:
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


def read_result(folder: RunFolder) -> RunResult | None:
    """The result, or None when the run is not done."""
    try:
        return RunResult.model_validate_json(folder.result.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{folder.result} is no result ({str(error).splitlines()[0]}): move it away") from None


def write_result(folder: RunFolder, result: RunResult) -> None:
    """Write the result; the last thing a run does."""
    write_json(folder.result, result.model_dump())


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """All records in order of step; for a step the highest attempt wins; a torn last line is left out."""
    numbers = sorted(int(path.stem) for path in (folder.path / "metrics").glob("*.jsonl") if path.stem.isdigit())
    by_key: dict[tuple[int, str], dict[str, Any]] = {}
    for number in numbers:
        for record in _lines(folder.metrics(number)):
            by_key[record["step"], record["kind"]] = record | {"attempt": number}
    return [by_key[key] for key in sorted(by_key)]


def records_of_attempt(folder: RunFolder, number: int) -> list[dict[str, Any]]:
    """All whole records of one attempt, in their order; none where it wrote none."""
    path = folder.metrics(number)
    return list(_lines(path)) if path.exists() else []


@while_unchanged(lambda path, tail_bytes=0: [path])
def last_record(path: Path, tail_bytes: int = 4096) -> dict[str, Any] | None:
    """The newest whole training record of one attempt, reading only the file's end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail_bytes))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        record = _parse(line)
        if record and record["kind"] == "train":
            return record
    return None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if record := _parse(line):
                yield record


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)
    return record if is_one else None
