"""Turn a run's checkpoint into one folder that predicts anywhere: `furnace export RUN_DIR --out DIR`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError


def main(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR|CHECKPOINT", help="a run's folder, or one of its checkpoints"
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to make")],
    step: Annotated[
        str | None,
        typer.Option(
            metavar="N|best", help="checkpoint of this step [best: the one that validation chose]"
        ),
    ] = None,
    format_: Annotated[
        Literal["safetensors", "torch_export"],
        typer.Option(
            "--format",
            help="torch_export: also model.pt2, the computation for programs without Furnace",
        ),
    ] = "safetensors",
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="where the run's packed data lie [as in its last attempt]"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(hidden=True, help="older name of --data-root")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="the tokenizer that packed the text [as the data's manifest says]"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace an exported model that is there")
    ] = False,
) -> None:
    """Export a checkpoint of any ZeRO stage and number of processes: weights, labels, preprocessing, scores.

    The folder needs neither the run nor its data, and holds no pickle. What is written is loaded again and compared
    with what was read, and with the run's own answers, before it gets its name.
    """
    if len(sources) > 1:
        raise ConfigError(
            f"{len(sources)} run folders fit, wanted one: {', '.join(map(str, sources))}"
        )
    print("reading the checkpoint ...", flush=True)  # torch and DeepSpeed take their seconds
    # unpickling imports DeepSpeed, which complains of a missing GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from furnace_hpc.inference.export import export

    with_program = format_ == "torch_export"
    exported = export(
        sources[0],
        out,
        step,
        data_root or data_dir,
        tokenizer,
        with_program,
        force,
        lambda words: print(words, flush=True),
    )
    came_from = exported.provenance
    print(f"exported {came_from.run_id}, step {came_from.step} of {came_from.steps}, to {out}")
    name = exported.config.selection_metric
    for metric in (name, name.replace("val/", "test/", 1)):
        if metric in exported.scores:
            print(f"  {metric} {exported.scores[metric]:.4g}")
    for task in exported.config.tasks:
        if task.kind == "multi_label" and task.name not in exported.thresholds:
            print(
                f"  {task.name}: step {came_from.step} was never evaluated, so its threshold is 0.5"
            )
    some = next(iter(exported.modalities))
    print(f"try: furnace predict --model {out} --{some} {'TEXT' if some == 'text' else 'FILE'}")


if __name__ == "__main__":
    run_command(main)
