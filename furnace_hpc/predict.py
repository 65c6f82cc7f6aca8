"""Predict with an exported model: `furnace predict --model DIR --text "it is even"`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError

TextPair = Annotated[str | None, typer.Option(help="second text, if the model reads text pairs")]
Numbers = Annotated[
    str | None,
    typer.Option(metavar="NAME=NUMBER,...", help="numbers; those that are left out are missing"),
]


def main(
    model: Annotated[Path, typer.Option(metavar="DIR", help="folder made by `furnace export`")],
    text: Annotated[str | None, typer.Option(help="text")] = None,
    text_pair: TextPair = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="image file, or .npy with the stored values")
    ] = None,
    audio: Annotated[
        str | None, typer.Option(metavar="FILE", help="sound file, or .npy with the stored values")
    ] = None,
    numbers: Numbers = None,
    input_: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="file of many samples: JSON lines with the optional keys id, text, image, "
            "audio and numbers, or CSV, TSV or Parquet with the columns of the packed table; "
            "paths are relative to the file",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="number of classes to show [5; with --json: all]"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON object per sample")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, max=4096, help="with --input: samples per forward pass")
    ] = 32,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... [a GPU if there is one]")
    ] = None,
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code", help="run the model's own code, if it has any: it can do all you can"
        ),
    ] = False,
) -> None:
    """Predict for one sample, or for each line of a file. Give any of a sample's modalities.

    With --input, a sample that cannot be read is reported on stderr. All other samples are still
    predicted, and the exit code is 1.
    """
    modalities = {"text": text, "image": image, "audio": audio, "numbers": numbers}
    given: dict[str, Any] = {name: value for name, value in modalities.items() if value is not None}
    if text_pair is not None:
        given["text"] = [text or "", text_pair]
    _check_given(given, input_)
    if numbers is not None:
        given["numbers"] = _parsed_numbers(numbers)
    from furnace_hpc.inference.batch_predict import answer_file, to_json, to_text
    from furnace_hpc.inference.predictor import Predictor

    predictor = Predictor.load(model, device, trust_code)
    if input_ is not None:
        failed = answer_file(predictor, input_, sys.stdout, sys.stderr, top, json_, batch_size)
        raise typer.Exit(min(1, failed))
    answer = predictor.predict(**given)
    if json_:
        print(to_json(answer, top))
    else:
        print(to_text(answer, predictor.modalities, top))


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
                f"--numbers has {part!r}, wanted each number once as NAME=NUMBER, such as "
                "age=41,height=1.8"
            )
        found[name] = value
    return found


def _check_given(given: dict[str, Any], input_: Path | None) -> None:
    if input_ is None and not given:
        raise ConfigError(
            "no sample is given. Give any of --text, --image, --audio and --numbers, or --input "
            "FILE.jsonl"
        )
    if input_ is None:
        return
    if given:
        option = next(iter(given))
        raise ConfigError(
            f"--input and --{option} are both given. Give one sample or a file of samples"
        )
    if not input_.is_file():
        raise ConfigError(
            f"--input {str(input_)!r} is not a file. Give a file with one JSON object per line"
        )


if __name__ == "__main__":
    run_command(main)
