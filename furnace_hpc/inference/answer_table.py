"""Predict all rows of a table, and write the table with columns of answers.

Answers are appended to `<output>.predicting/answers.jsonl`. The same command resumes after the
last whole line. The output appears with one rename, after the last row.
"""

import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.table.sources.files import content_of
from furnace_hpc.host.durable_files import replace_file, sync
from furnace_hpc.inference.answer_columns import ERROR, AnswerColumns, form_of, write_table
from furnace_hpc.inference.batch_predict import answers_of, decoding_elsewhere, table_lines
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.table_rows import Columns, InputTable, input_columns, open_input

SYNC_EVERY_S = 5.0  # a power cut loses at most this much work
SETTINGS, ANSWERS, RESULT = "settings.json", "answers.jsonl", "result"


@dataclass(frozen=True)
class TableJob:
    """What to read and to write."""

    input: Path
    output: Path
    columns: Columns = field(default_factory=dict)
    """Modality, or `id` -> columns that replace those of the pack."""
    media_root: Path | None = None
    with_probabilities: bool = False
    max_refused: float = 0.05
    batch_size: int = 32
    force: bool = False
    report: Callable[[str, int, int], None] = lambda *_: None
    """Called with the kind of work, the number of rows done, and the total."""


@dataclass
class Counts:
    """Rows that are answered or refused."""

    rows: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Row, id and error of each row without an answer."""


def predict_table(predictor: Predictor, job: TableJob) -> None:
    """Write the answers to all rows of a table.

    Raises:
        ConfigError: the table cannot be read, or more rows than allowed have no answer.
    """
    form = form_of(job.output)
    if job.output.exists() and not job.force:
        raise ConfigError(f"{job.output} exists. Give another --output, or replace it with --force")
    columns = AnswerColumns(predictor.exported, job.with_probabilities)
    with (
        _working_folder(job.output) as folder,
        open_input(
            *(job.input, predictor.exported, job.columns, job.media_root),
            _empty(folder / "rows"),
        ) as table,
    ):
        columns.check(table.table.columns, job.input)
        _begin(folder, _settings(predictor, table, job), job)
        counts = _answer_rows(predictor, table, columns, folder, job)
        _check_refused(counts, job, folder)
        answers = pl.scan_ndjson(folder / ANSWERS, schema=columns.schema)
        left_out = write_table(table.table.frame, answers, folder / RESULT, form)
        refused = _publish(folder, counts, job)
    for name in left_out:
        print(f"note: column {name!r} is left out, because {job.output.suffix} cannot hold it")
    print(f"{job.output}: {counts.rows:,} rows")
    if counts.refused:
        print(f"rows without an answer: {len(counts.refused):,}. {refused} has a line for each")


@contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """Lock the folder beside the output. Delete it in the end, unless it has answers.

    Raises:
        ConfigError: another process writes the output.
    """
    folder = output.with_name(f"{output.name}.predicting")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{output} is written by another process: wait for it") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder / "rows", ignore_errors=True)
            answers = folder / ANSWERS
            if not answers.exists() or answers.stat().st_size == 0:
                shutil.rmtree(folder)
    finally:
        os.close(lock)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _settings(predictor: Predictor, table: InputTable, job: TableJob) -> dict[str, Any]:
    """Return what decides the answers, as JSON."""
    columns = input_columns(predictor.exported) | dict(job.columns)
    content: dict[str, Any] = {
        "model": predictor.exported.files,
        "config": predictor.exported.config.model_dump(mode="json"),
        "input": content_of([table.table]),
        "columns": {name: list(specs) for name, specs in columns.items()},
        "media_root": str(table.table.root.resolve()),
        "probabilities": job.with_probabilities,
    }
    return dict(json.loads(json.dumps(content)))


def _begin(folder: Path, settings: dict[str, Any], job: TableJob) -> None:
    """Resume answers with the same settings, or start without answers.

    Raises:
        ConfigError: the folder has answers with other settings.
    """
    known = folder / SETTINGS
    if known.exists() and (folder / ANSWERS).exists():
        if json.loads(known.read_bytes()) == settings:
            return
        if not job.force:
            raise ConfigError(
                f"{folder} has unfinished answers of another model, input or option. Delete it, "
                "finish it with those, or give --force"
            )
    (folder / ANSWERS).write_bytes(b"")
    replace_file(known, json.dumps(settings).encode())


def _answer_rows(
    predictor: Predictor, table: InputTable, columns: AnswerColumns, folder: Path, job: TableJob
) -> Counts:
    """Answer the remaining rows, and append a line for each."""
    total = table.staged.num_rows
    with (
        (folder / ANSWERS).open("r+b") as file,
        decoding_elsewhere(predictor),
    ):
        counts = _resumed(file)
        synced_s = time.monotonic()
        lines = table_lines(predictor, table, counts.rows)
        try:
            while batch := list(itertools.islice(lines, job.batch_size)):
                written = []
                for row, answer in answers_of(predictor, batch):
                    if answer is None:
                        counts.refused.append({"row": row.line, "id": row.id, "error": row.problem})
                        cells = {"row": row.line, "id": row.id, ERROR: row.problem}
                    else:
                        cells = columns.cells(answer)
                    written.append(json.dumps(cells, allow_nan=False))
                file.write(("\n".join(written) + "\n").encode())
                file.flush()
                counts.rows += len(batch)
                job.report("samples", counts.rows, total)
                if time.monotonic() - synced_s > SYNC_EVERY_S:
                    os.fsync(file.fileno())
                    synced_s = time.monotonic()
        except KeyboardInterrupt:
            print(
                f"interrupted: {counts.rows:,} of {total:,} rows are in {folder}. Run the same "
                "command to resume."
            )
            raise
        os.fsync(file.fileno())
    return counts


def _resumed(file: BinaryIO) -> Counts:
    """Count the whole lines of earlier commands, and cut off the rest."""
    counts, end = Counts(), 0
    for line in file:
        try:
            cells = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        counts.rows, end = counts.rows + 1, end + len(line)
        if cells.get(ERROR) is not None:
            named = {"row": cells["row"], "id": cells["id"]}
            counts.refused.append(named | {"error": cells[ERROR]})
    file.seek(end)
    file.truncate()
    return counts


def _check_refused(counts: Counts, job: TableJob, folder: Path) -> None:
    """Raise ConfigError if too many rows have no answer."""
    refused, rows = len(counts.refused), counts.rows
    if refused <= job.max_refused * rows:
        return
    first = counts.refused[0]
    enough = -(-100 * refused // rows) / 100
    raise ConfigError(
        f"{refused:,} of {rows:,} rows have no answer ({refused / rows:.1%}; --max-refused is "
        f"{job.max_refused:.1%}), first row {first['row']}: {first['error']}. Fix the rows and "
        f"delete {folder}, or accept them with --max-refused {enough:g}"
    )


def _publish(folder: Path, counts: Counts, job: TableJob) -> Path:
    """Rename the result to its name, and write the refused rows beside it. Return their file."""
    refused = job.output.with_suffix(".refused.jsonl")
    if counts.refused:
        lines = [json.dumps(line) + "\n" for line in counts.refused]
        replace_file(refused, "".join(lines).encode())
    elif job.force:
        refused.unlink(missing_ok=True)
    sync(folder / RESULT)
    (folder / RESULT).replace(job.output)
    sync(job.output.absolute().parent)
    (folder / ANSWERS).unlink()
    return refused
