"""Predict with an exported model: `furnace predict --model DIR --text "it is even"`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.console.progress_bar import progress_bar

Text = Annotated[str | None, typer.Option(help="text")]
TextPair = Annotated[str | None, typer.Option(help="second text, if the model reads text pairs")]
Numbers = Annotated[
    str | None,
    typer.Option(metavar="NAME=NUMBER,...", help="numbers; those that are left out are missing"),
]
Image = Annotated[
    str | None, typer.Option(metavar="FILE", help="image file, or .npy with the stored values")
]
Audio = Annotated[
    str | None, typer.Option(metavar="FILE", help="sound file, or .npy with the stored values")
]
Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        metavar="FILE",
        help="file of many samples: JSON lines, CSV, TSV or Parquet with the columns of the packed "
        "table, or with id, text, image, audio and numbers; paths are relative to the file",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="write the rows of --input with columns of answers to this .csv, .tsv, .jsonl or "
        ".parquet",
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=COL",
        help="with --input: column of text, text-pair, image, audio, audio-start, audio-end, "
        "numbers or id, instead of the packed one; repeatable",
    ),
]
MediaRoot = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="with --input: folder of the paths [the file's folder]"),
]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="with --output: a column for each class")
]
MaxRefused = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="with --output: fraction of rows that may have no answer [0.05]"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="with --output: replace an existing file")]
Top = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="number of classes to show [5; with --json: all]"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object per sample")]
BatchSize = Annotated[
    int, typer.Option(min=1, max=4096, help="with --input: samples per forward pass")
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="run the model's own code, if it has any: it can do all you can"
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [a GPU if there is one]")]


def main(
    model: Annotated[Path, typer.Option(metavar="DIR", help="folder made by `furnace export`")],
    text: Text = None,
    text_pair: TextPair = None,
    image: Image = None,
    audio: Audio = None,
    numbers: Numbers = None,
    input_: Input = None,
    output: Output = None,
    column: Column = None,
    media_root: MediaRoot = None,
    probabilities: Probabilities = False,
    max_refused: MaxRefused = None,
    force: Force = False,
    top: Top = None,
    json_: Json = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    trust_code: TrustCode = False,
) -> None:
    """Predict for one sample, or for each line of a file. Give any of a sample's modalities.

    With --input, a sample that cannot be read is reported on stderr. All other samples are still
    predicted, and the exit code is 1. With --output, such rows have an error in the output.
    """
    given = _sample(text, text_pair, image, audio, numbers)
    _check_given(given, input_, output)
    files = {"--output": output, "--column": column, "--media-root": media_root}
    _check_needs("--input", input_, files)
    tables = {"--probabilities": probabilities, "--max-refused": max_refused, "--force": force}
    _check_needs("--output", output, tables)
    prints = {"--json": json_, "--top": top}
    if output is not None and (used := [option for option, value in prints.items() if value]):
        raise ConfigError(f"{used[0]} and --output are both given. Leave {used[0]} out")
    from furnace_hpc.inference.batch_predict import answer_file, to_json, to_text
    from furnace_hpc.inference.predictor import Predictor

    predictor = Predictor.load(model, device, trust_code)
    if input_ is not None:
        from furnace_hpc.inference.table_rows import parse_columns

        columns = parse_columns(column or (), predictor.exported)
        if output is not None:
            from furnace_hpc.inference.answer_table import TableJob, predict_table

            options = (probabilities, 0.05 if max_refused is None else max_refused, batch_size)
            with progress_bar() as report:
                job = TableJob(input_, output, columns, media_root, *options, force, report)
                predict_table(predictor, job)
            return
        failed = answer_file(
            *(predictor, input_, sys.stdout, sys.stderr, top, json_, batch_size),
            *(columns, media_root),
        )
        raise typer.Exit(min(1, failed))
    answer = predictor.predict(**given)
    if json_:
        print(to_json(answer, top))
    else:
        print(to_text(answer, predictor.modalities, top))


def _sample(
    text: str | None,
    text_pair: str | None,
    image: str | None,
    audio: str | None,
    numbers: str | None,
) -> dict[str, Any]:
    """Return modality -> what is given of it."""
    modalities = {"text": text, "image": image, "audio": audio}
    given: dict[str, Any] = {name: value for name, value in modalities.items() if value is not None}
    if text_pair is not None:
        given["text"] = [text or "", text_pair]
    if numbers is not None:
        given["numbers"] = _parsed_numbers(numbers)
    return given


def _parsed_numbers(given: str) -> dict[str, str]:
    """Parse `age=41,height=1.8`.

    Raises:
        ConfigError: a part has no name, or a name is given twice.
    """
    found: dict[str, str] = {}
    for part in given.split(","):
        name, equals, value = (text.strip() for text in part.rpartition("="))
        if not equals or not name or name in found:
            raise ConfigError(
                f"--numbers has {part!r}, wanted each number once as NAME=NUMBER, with a "
                "decimal point, such as age=41,height=1.8"
            )
        found[name] = value
    return found


def _check_needs(needed: str, value: object, options: Mapping[str, object]) -> None:
    """Raise ConfigError if an option is given without the one that it needs."""
    if value is None and (used := [option for option, own in options.items() if own]):
        raise ConfigError(f"{used[0]} is given without {needed}. Give both, or leave it out")


def _check_given(given: dict[str, Any], input_: Path | None, output: Path | None) -> None:
    if input_ is None and not given:
        raise ConfigError(
            "no sample is given. Give any of --text, --image, --audio and --numbers, or --input "
            "FILE"
        )
    if input_ is None:
        return
    if given:
        option = next(iter(given))
        raise ConfigError(
            f"--input and --{option} are both given. Give one sample or a file of samples"
        )
    if not input_.is_file() and (output is None or not input_.exists()):
        raise ConfigError(
            f"--input {str(input_)!r} is not a file. Give a file with one JSON object per line"
        )


if __name__ == "__main__":
    run_command(main)
