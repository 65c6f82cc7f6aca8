"""Ask an exported model: `furnace predict --model DIR --text "it is even" --image seven.png`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError


def main(
    model: Annotated[Path, typer.Option(metavar="DIR", help="folder that `furnace export` made")],
    text: Annotated[str | None, typer.Option(help="a text")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="an image file, or .npy as it is stored")
    ] = None,
    audio: Annotated[
        str | None, typer.Option(metavar="FILE", help="a sound file, or .npy as it is stored")
    ] = None,
    input_: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE.jsonl",
            help='many samples, a JSON object a line: {"id": ..., "text": ..., "image": ..., "audio": ...}, '
            "any of them; paths begin at the file's folder",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="most probable classes shown [5; --json: all]"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object a sample")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, max=4096, help="--input: samples of one forward pass")
    ] = 32,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ... [a GPU where there is one]")
    ] = None,
) -> None:
    """Answer for one sample, or for every line of a file; give any of its modalities, not all of them.

    With --input, a sample that cannot be read is one line on the error output, the others are answered all the same,
    and the exit code is 1.
    """
    given = {
        name: value
        for name, value in (("text", text), ("image", image), ("audio", audio))
        if value is not None
    }
    if input_ is not None and given:
        raise ConfigError(
            f"--input and --{next(iter(given))} are both given: one sample, or a file of them"
        )
    if input_ is None and not given:
        raise ConfigError(
            "nothing is given: give --text, --image or --audio, any of them, or --input FILE.jsonl"
        )
    if input_ is not None and not input_.is_file():
        raise ConfigError(f"--input {str(input_)!r} is no file: give one with a JSON object a line")
    from furnace_hpc.inference.batch_predict import answer_file, to_json, to_text
    from furnace_hpc.inference.predictor import Predictor

    predictor = Predictor.load(model, device)
    if input_ is not None:
        failed = answer_file(predictor, input_, sys.stdout, sys.stderr, top, json_, batch_size)
        raise typer.Exit(1 if failed else 0)
    answer = predictor.predict(**given)
    print(to_json(answer, top) if json_ else to_text(answer, predictor.modalities, top))


if __name__ == "__main__":
    run_command(main)
