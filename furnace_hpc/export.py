"""Export a run's checkpoint as a folder for prediction: `furnace export RUN_DIR --out DIR`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.runs.submitted import named_run

if TYPE_CHECKING:
    from furnace_hpc.inference import Exported


class Format(StrEnum):
    """What is written beside the weights."""

    SAFETENSORS = "safetensors"
    TORCH_EXPORT = "torch_export"
    ONNX = "onnx"


Formats = Annotated[
    list[Format] | None,
    typer.Option(
        "--format",
        metavar="safetensors|torch_export|onnx",
        help="torch_export: also write model.pt2, for programs without Furnace; onnx: also write "
        "model.onnx; repeatable",
    ),
]


def folder_of(given: Path) -> Path:
    """The folder of a run that is given by GRID/RUN. Paths that exist stay as they are.

    Raises:
        ConfigError: there is no such run, or the beginning of RUN fits several runs.
    """
    if given.exists() or given.parent == Path():
        return given
    return named_run(str(given), runs_root(None)).path


def main(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR|CHECKPOINT", help="folder of a run or of a checkpoint, or GRID/RUN"
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to create")],
    step: Annotated[
        str | None,
        typer.Option(
            metavar="N|best", help="step of the checkpoint [best: the step selected by validation]"
        ),
    ] = None,
    format_: Formats = None,
    data_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder of the packed data [as in the last attempt]"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(hidden=True, help="older name of --data-root")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="tokenizer of the packed text [as in the data's manifest]"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace an existing exported model")
    ] = False,
) -> None:
    """Export a checkpoint: weights, labels, preprocessing and scores.

    Any ZeRO stage and number of processes works. The folder needs neither the run nor its data, and
    contains no pickle. Its weights and outputs are first compared with those of the run.
    """
    if len(sources) > 1:
        raise ConfigError(
            f"{len(sources)} run folders match: {', '.join(map(str, sources))}. Give one of them"
        )
    source = folder_of(sources[0])
    print("reading the checkpoint ...", flush=True)  # importing torch and DeepSpeed takes seconds
    # Unpickling imports DeepSpeed, which otherwise warns about a missing GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from furnace_hpc.inference.export import export

    exported = export(
        source,
        out,
        step,
        data_root or data_dir,
        tokenizer,
        Format.TORCH_EXPORT in (format_ or ()),
        force,
        lambda line: print(line, flush=True),
        Format.ONNX in (format_ or ()),
    )
    _print_summary(exported, out)


def _print_summary(exported: "Exported", out: Path) -> None:
    origin = exported.provenance
    print(f"exported {origin.run_id}, step {origin.step} of {origin.steps}, to {out}")
    metric = exported.config.selection_metric
    for name in (metric, metric.replace("val/", "test/", 1)):
        if name in exported.scores:
            print(f"  {name} {exported.scores[name]:.4g}")
    for task in exported.config.tasks:
        if task.kind == "multi_label" and task.name not in exported.thresholds:
            print(f"  {task.name}: threshold 0.5, because step {origin.step} was never evaluated")
    modality = exported.modalities[0]
    value = "FILE"
    if modality == "text":
        value = "TEXT"
    print(f"try: furnace predict --model {out} --{modality} {value}")


if __name__ == "__main__":
    run_command(main)
