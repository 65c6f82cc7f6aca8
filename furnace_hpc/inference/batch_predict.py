"""Answers as text and as JSON, and whole files of samples: one JSON object a line in, an answer a line out."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.progress import Progress

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import MODALITIES
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.data.decode.reading import reading
from furnace_hpc.data.decode.separate_process import Aside
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.packing.sample import Values
from furnace_hpc.inference.predictor import Answer, Predictor, TaskAnswer
from furnace_hpc.inference.preprocess import DECODERS

SHOWN = 5
MAX_LINE_BYTES = 10_000_000  # of one JSON object; a book is smaller


@dataclass(frozen=True)
class Row:
    """One line of a file: the values of its sample, or why there are none."""

    line: int
    id: Any
    values: Values | None
    problem: str = ""


def answer_file(
    predictor: Predictor,
    path: Path,
    out: TextIO,
    errors: TextIO,
    top: int | None,
    as_json: bool,
    batch_size: int,
) -> int:
    """Answer every line of a file, in its order; return how many could not be.

    Raises:
        ConfigError: the file cannot be read.
    """
    with Aside(DECODERS) as aside:
        here, predictor.recipe.decode = predictor.recipe.decode, aside.read
        try:
            return _answer_lines(predictor, path, out, errors, top, as_json, batch_size)
        finally:
            predictor.recipe.decode = here


def _answer_lines(
    predictor: Predictor,
    path: Path,
    out: TextIO,
    errors: TextIO,
    top: int | None,
    as_json: bool,
    batch_size: int,
) -> int:
    failed = 0
    with path.open("rb") as file:
        total = sum(1 for _ in _lines(file))
    console = Console(file=errors, soft_wrap=True, highlight=False)
    with (
        path.open("rb") as file,
        Progress(
            console=console, transient=True, disable=not errors.isatty() or out.isatty()
        ) as bar,
    ):
        task = bar.add_task("samples", total=total)
        rows = _rows(predictor, file, path.parent)
        while batch := list(itertools.islice(rows, batch_size)):
            for row, answer in _answers(predictor, batch):
                if answer is None:
                    failed += 1
                    console.print(
                        f"error: {printable(f'{path.name}:{row.line}: {row.problem}')}",
                        markup=False,
                    )
                    if as_json:
                        print(json.dumps(_head(row) | {"error": row.problem}), file=out)
                elif as_json:
                    print(json.dumps(_head(row) | content(answer, top)), file=out)
                else:
                    print(f"{_name(row)}  {_in_short(answer, top)}", file=out)
            out.flush()
            bar.update(task, completed=batch[-1].line)
    if failed:
        console.print(f"{failed} of the samples could not be read", markup=False)
    return failed


def to_text(answer: Answer, modalities: tuple[str, ...], top: int | None) -> str:
    """An answer for a terminal: a table a task."""
    absent = [name for name in modalities if name not in answer.modalities]
    lines = [
        f"from {', '.join(answer.modalities)}"
        + (f"; without {', '.join(absent)}" if absent else "")
    ]
    for name, task in answer.tasks.items():
        lines.append(
            f"{name}: {_labels(task)}"
            + ("" if task.threshold is None else f" (above {task.threshold:.3f})")
        )
        shown = [
            (printable(label), p) for label, p in list(task.probabilities.items())[: top or SHOWN]
        ]
        width = max(len(label) for label, _ in shown)
        lines += [f"  {label:<{width}}  {100 * probability:5.1f} %" for label, probability in shown]
    return "\n".join(lines)


def to_json(answer: Answer, top: int | None) -> str:
    """An answer as one line of JSON."""
    return json.dumps(content(answer, top))


def content(answer: Answer, top: int | None) -> dict[str, Any]:
    """An answer as JSON holds it."""
    tasks: dict[str, Any] = {}
    for name, task in answer.tasks.items():
        said = (
            {"label": task.labels[0]} if task.threshold is None else {"labels": list(task.labels)}
        )
        more = {} if task.threshold is None else {"threshold": task.threshold}
        tasks[name] = said | more | {"probabilities": dict(list(task.probabilities.items())[:top])}
    return {"modalities": list(answer.modalities), "tasks": tasks}


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The file's lines; of one that is too long its beginning, so that no more of it is ever in memory."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _answers(predictor: Predictor, batch: Sequence[Row]) -> Iterator[tuple[Row, Answer | None]]:
    """Answer a batch in one forward pass; if that fails, each row alone, so that a row costs no other."""
    good = [row for row in batch if row.values is not None]
    try:
        made = (
            predictor.predict_many([row.values for row in good if row.values is not None])
            if good
            else []
        )
    except Exception as error:
        if len(batch) == 1:
            yield replace(batch[0], values=None, problem=f"no answer ({_in_line(error)})"), None
        else:
            for row in batch:
                yield from _answers(predictor, [row])
        return
    answers = iter(made)
    for row in batch:
        yield row, None if row.values is None else next(answers)


def _rows(predictor: Predictor, file: BinaryIO, folder: Path) -> Iterator[Row]:
    """The samples of the lines; empty lines are none."""
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        row: dict[str, Any] = {}
        try:
            with reading(f"line {number}"):
                row = _parsed(line)
                files = {
                    name: row[name] for name in ("image", "audio") if isinstance(row.get(name), str)
                }
                given = {name: value for name, value in row.items() if name != "id"}
                values = predictor.read(
                    given | {name: folder / file for name, file in files.items()}
                )
            yield Row(number, row.get("id"), values)
        except (ConfigError, Unusable) as error:
            yield Row(
                number,
                row.get("id"),
                None,
                str(error) if isinstance(error, ConfigError) else error.detail,
            )


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ConfigError(f"a line of more than {MAX_LINE_BYTES:,} bytes")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({_in_line(error)})") from None
    if not isinstance(row, dict):
        raise ConfigError(
            f"a JSON {type(row).__name__}, wanted an object with {', '.join(MODALITIES)}, any of them"
        )
    try:
        json.dumps(row.get("id"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"id cannot be written as JSON ({_in_line(error)})") from None
    return row


def _in_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def _head(row: Row) -> dict[str, Any]:
    return {"line": row.line} | ({} if row.id is None else {"id": row.id})


def _name(row: Row) -> str:
    return printable(str(row.line if row.id is None else row.id))


def _in_short(answer: Answer, top: int | None) -> str:
    """An answer in one line: of each task its labels; with --top, that many classes with their probabilities."""
    parts = []
    for name, task in answer.tasks.items():
        shown = list(task.probabilities.items())[: top or 1]
        likely = ", ".join(
            f"{printable(label)} {100 * probability:.1f} %" for label, probability in shown
        )
        parts.append(
            f"{name}: {likely}" if task.threshold is None else f"{name}: {_labels(task)} [{likely}]"
        )
    return "; ".join(parts)


def _labels(task: TaskAnswer) -> str:
    return printable(", ".join(task.labels)) or "none"
