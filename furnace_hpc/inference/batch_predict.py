"""Write answers as text or JSON, for one sample or for a file with one JSON object per line."""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.progress import Progress

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import MODALITIES
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.data.decode.reading import reading
from furnace_hpc.data.decode.separate_process import DecoderProcess
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Values
from furnace_hpc.inference.predictor import Answer, Predictor, TaskAnswer
from furnace_hpc.inference.preprocess import DECODERS
from furnace_hpc.inference.table_rows import (
    Columns,
    InputTable,
    input_columns,
    is_table,
    open_input,
    sample_of,
)

SHOWN = 5
MAX_LINE_BYTES = 10_000_000  # of one JSON object; more than a long book


@dataclass(frozen=True)
class InputLine:
    """One line of a file, with the stored values of its sample."""

    line: int
    id: Any
    values: Values | None
    """None if the sample cannot be read."""
    problem: str = ""

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that identify the line in JSON output."""
        if self.id is None:
            return {"line": self.line}
        return {"line": self.line, "id": self.id}

    @property
    def name(self) -> str:
        """The id, or the line number if there is no id."""
        return printable(str(self.keys.get("id", self.line)))


@dataclass(frozen=True)
class AnswerWriter:
    """Writes answers to `out` and problems to `errors`."""

    file_name: str
    out: TextIO
    errors: Console
    top: int | None
    as_json: bool

    def answer(self, row: InputLine, answer: Answer) -> None:
        """Write the answer for one line."""
        if self.as_json:
            print(json.dumps(row.keys | content(answer, self.top)), file=self.out)
        else:
            print(f"{row.name}  {_one_line(answer, self.top)}", file=self.out)

    def problem(self, row: InputLine) -> None:
        """Write why a line has no answer."""
        message = printable(f"{self.file_name}:{row.line}: {row.problem}")
        self.errors.print(f"error: {message}", markup=False)
        if self.as_json:
            print(json.dumps(row.keys | {"error": row.problem}), file=self.out)


def answer_file(
    predictor: Predictor,
    path: Path,
    out: TextIO,
    errors: TextIO,
    top: int | None,
    as_json: bool,
    batch_size: int,
    columns: Columns | None = None,
    media_root: Path | None = None,
) -> int:
    """Answer every line of a file in order. Return the number of lines without an answer.

    Args:
        predictor: the model.
        path: JSON lines or a table.
        out: for the answers.
        errors: for the errors.
        top: number of classes to show.
        as_json: write JSON.
        batch_size: lines per forward pass.
        columns: columns that replace those of the pack.
        media_root: folder to which paths are relative. None: the file's folder.

    Raises:
        ConfigError: the file cannot be read.
    """
    console = Console(file=errors, soft_wrap=True, highlight=False)
    hide_progress = not errors.isatty() or out.isatty()
    writer = AnswerWriter(path.name, out, console, top, as_json)
    with decoding_elsewhere(predictor), _opened(predictor, path, columns, media_root) as rows:
        failed = _answer_lines(predictor, *rows, writer, batch_size, hide_progress)
    if failed:
        console.print(f"samples without an answer: {failed}", markup=False)
    return failed


@contextmanager
def decoding_elsewhere(predictor: Predictor) -> Iterator[None]:
    """Decode files in another process, so that a crash of a decoder affects only its file."""
    with DecoderProcess(DECODERS) as decoder:
        in_process, predictor.preprocessor.decode = predictor.preprocessor.decode, decoder.read
        try:
            yield
        finally:
            predictor.preprocessor.decode = in_process


@contextmanager
def _opened(
    predictor: Predictor, path: Path, columns: Columns | None, media_root: Path | None
) -> Iterator[tuple[Iterator[InputLine], int]]:
    """Open a file. Yield its samples and their number."""
    if is_table(path):
        with (
            tempfile.TemporaryDirectory() as scratch,
            open_input(path, predictor.exported, columns or {}, media_root, Path(scratch)) as table,
        ):
            yield table_lines(predictor, table), table.staged.num_rows
        return
    with path.open("rb") as file:
        total = sum(1 for _ in _lines(file))
    with path.open("rb") as file:
        yield _rows(predictor, file, media_root or path.parent, columns or {}), total


def _answer_lines(
    predictor: Predictor,
    rows: Iterator[InputLine],
    total: int,
    writer: AnswerWriter,
    batch_size: int,
    hide_progress: bool,
) -> int:
    failed = 0
    with Progress(console=writer.errors, transient=True, disable=hide_progress) as bar:
        task = bar.add_task("samples", total=total)
        while batch := list(itertools.islice(rows, batch_size)):
            for row, answer in answers_of(predictor, batch):
                if answer is None:
                    failed += 1
                    writer.problem(row)
                else:
                    writer.answer(row, answer)
            writer.out.flush()
            bar.update(task, completed=batch[-1].line)
    return failed


def to_text(answer: Answer, modalities: tuple[str, ...], top: int | None) -> str:
    """Format an answer for a terminal, with one table per task."""
    first = f"from {', '.join(answer.modalities)}"
    absent = [name for name in modalities if name not in answer.modalities]
    if absent:
        first += f"; without {', '.join(absent)}"
    lines = [first]
    for name, task in answer.tasks.items():
        if task.values:
            lines.append(f"{name}: {_numbers(task)}")
            continue
        title = f"{name}: {_labels(task)}"
        if task.threshold is not None:
            title += f" (above {task.threshold:.3f})"
        most_probable = list(task.probabilities.items())[: top or SHOWN]
        shown = [(printable(label), probability) for label, probability in most_probable]
        width = max(len(label) for label, _ in shown)
        lines.append(title)
        lines += [f"  {label:<{width}}  {100 * probability:5.1f} %" for label, probability in shown]
    return "\n".join(lines)


def to_json(answer: Answer, top: int | None) -> str:
    """Format an answer as one line of JSON."""
    return json.dumps(content(answer, top))


def content(answer: Answer, top: int | None) -> dict[str, Any]:
    """Return an answer as a JSON object."""
    tasks: dict[str, Any] = {}
    for name, task in answer.tasks.items():
        if task.values:
            tasks[name] = {"values": task.values}
            continue
        tasks[name] = {"label": task.labels[0]} if task.threshold is None else _multi_label(task)
        tasks[name]["probabilities"] = dict(list(task.probabilities.items())[:top])
    return {"modalities": list(answer.modalities), "tasks": tasks}


def _multi_label(task: TaskAnswer) -> dict[str, Any]:
    return {"labels": list(task.labels), "threshold": task.threshold}


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the file's lines. Of a line that is too long, yield only the beginning."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def answers_of(
    predictor: Predictor, batch: Sequence[InputLine]
) -> Iterator[tuple[InputLine, Answer | None]]:
    """Answer a batch in one forward pass. If that fails, answer each line alone.

    So a line that fails does not affect the others.
    """
    samples = [row.values for row in batch if row.values is not None]
    try:
        answers = iter(predictor.predict_many(samples) if samples else [])
    except Exception as error:
        if len(batch) == 1:
            yield replace(batch[0], values=None, problem=f"no answer ({_shorten(error)})"), None
            return
        for row in batch:
            yield from answers_of(predictor, [row])
        return
    for row in batch:
        yield row, None if row.values is None else next(answers)


def _rows(
    predictor: Predictor, file: BinaryIO, folder: Path, given: Columns
) -> Iterator[InputLine]:
    """Read the sample of each line. Empty lines are skipped."""
    columns = None
    if predictor.exported.data.dataset == "table" or given:
        columns = input_columns(predictor.exported) | {name: [*own] for name, own in given.items()}
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            parse = partial(_parsed, line, columns)
            yield _read_line(predictor, number, parse, folder)


def table_lines(predictor: Predictor, table: InputTable, first: int = 0) -> Iterator[InputLine]:
    """Read the sample of each row of a table, after the `first` ones."""
    for number, name, sample in table.samples(first):
        named = sample if name is None else sample | {"id": name}
        yield _read_line(predictor, number, partial(dict, named), None)


def _read_line(
    predictor: Predictor, number: int, parse: Callable[[], dict[str, Any]], folder: Path | None
) -> InputLine:
    """Read one sample. Paths that are text are relative to `folder`."""
    fields: dict[str, Any] = {}
    try:
        with reading(f"line {number}"):
            fields = parse()
            sample = {name: value for name, value in fields.items() if name != "id"}
            for name in ("image", "audio"):
                sample[name] = _below(folder, sample.get(name))
            values = predictor.read(sample)
    except ConfigError as error:
        return InputLine(number, fields.get("id"), None, str(error))
    except Unusable as error:
        return InputLine(number, fields.get("id"), None, error.detail)
    return InputLine(number, fields.get("id"), values)


def _below(folder: Path | None, file: Any) -> Any:
    """Return the path of a file, or of the file of a segment, that is relative to a folder."""
    if folder is None:
        return file
    if isinstance(file, dict) and isinstance(file.get("path"), str):
        return file | {"path": folder / file["path"]}
    return folder / file if isinstance(file, str) else file


def _parsed(line: bytes, columns: Columns | None) -> dict[str, Any]:
    """Parse a line. `columns`: of the pack of a table. None: the keys are modalities."""
    if len(line) > MAX_LINE_BYTES:
        raise ConfigError(f"the line has more than {MAX_LINE_BYTES:,} bytes")
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the line is not JSON ({_shorten(error)})") from None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"the line is a JSON {type(fields).__name__}, wanted an object with any of "
            f"{', '.join(MODALITIES)}"
        )
    sample: dict[str, Any] = fields if columns is None else sample_of(fields, columns)
    try:
        json.dumps(sample.get("id"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"id cannot be written as JSON ({_shorten(error)})") from None
    return sample


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def _one_line(answer: Answer, top: int | None) -> str:
    """Format an answer in one line: each task's labels and its `top` most probable classes."""
    parts = []
    for name, task in answer.tasks.items():
        if task.values:
            parts.append(f"{name}: {_numbers(task)}")
            continue
        shown = list(task.probabilities.items())[: top or 1]
        probabilities = ", ".join(f"{printable(label)} {100 * p:.1f} %" for label, p in shown)
        if task.threshold is None:
            parts.append(f"{name}: {probabilities}")
        else:
            parts.append(f"{name}: {_labels(task)} [{probabilities}]")
    return "; ".join(parts)


def _numbers(task: TaskAnswer) -> str:
    """Format the numbers of a regression. A single target needs no name."""
    if len(task.values) == 1:
        return f"{next(iter(task.values.values())):.6g}"
    return ", ".join(f"{printable(target)} {value:.6g}" for target, value in task.values.items())


def _labels(task: TaskAnswer) -> str:
    return printable(", ".join(task.labels)) or "none"
