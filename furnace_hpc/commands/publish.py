"""Make a folder for a hub or repository: `furnace publish --grid NAME`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.lookup import runs_root
from furnace_hpc.console.options import RunsRoot, SubmittedGrid


class Program(StrEnum):
    """A program that is written beside the weights."""

    TORCH_EXPORT = "torch_export"
    ONNX = "onnx"


Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, as given to submit; repeatable")
]
Variant = Annotated[
    str | None, typer.Option(help="row to publish [the best one by its mean on validation]")
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="folder to create [published/<grid>]")
]
Formats = Annotated[
    list[Program] | None,
    typer.Option(
        "--format",
        metavar="torch_export|onnx",
        help="also write a program, as `furnace export` does; repeatable",
    ),
]
License = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="license for the card, such as apache-2.0"),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="DIR", help="folder of the packed data [as in the last attempt]"
    ),
]
Push = Annotated[
    str | None,
    typer.Option(metavar="OWNER/NAME", help="upload the folder to this repository of the hub"),
]
Public = Annotated[
    bool, typer.Option("--public", help="with --push: a new repository is public, not private")
]
Force = Annotated[bool, typer.Option("--force", help="replace a published folder")]


def main(
    grid: SubmittedGrid,
    variant: Variant = None,
    out: Out = None,
    format_: Formats = None,
    license_: License = None,
    push: Push = None,
    public: Public = False,
    set_: Settings = None,
    runs_dir: RunsRoot = None,
    data_root: DataRoot = None,
    force: Force = False,
) -> None:
    """Make a folder with a model, its card, the table, the report and checksums.

    The run of the row with the best validation score is published. Private paths, secrets, and the
    names of user and nodes are removed. --push uses the token of `hf auth login` or HF_TOKEN.
    """
    from furnace_hpc.publishing.hub import check_push
    from furnace_hpc.publishing.hub import push as upload

    token = check_push(push) if push else ""
    if public and not push:
        raise ConfigError("--public is given without --push. Add --push, or remove --public")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from furnace_hpc.api.grid_table import make_table
    from furnace_hpc.config.grids.grid import results_name, with_settings
    from furnace_hpc.publishing.card import settings_text
    from furnace_hpc.publishing.folder import Wanted, publish
    from furnace_hpc.tables.reading.submitted import submitted_grid
    from furnace_hpc.tables.view import View

    submitted, folder = submitted_grid(grid, runs_root(runs_dir))
    submitted = with_settings(submitted, set_ or [])
    out = out or Path("published") / results_name(submitted)
    formats = format_ or ()
    wanted = Wanted(
        out,
        variant,
        data_root,
        Program.TORCH_EXPORT in formats,
        Program.ONNX in formats,
        license_,
        force,
    )
    ablation = make_table(submitted, folder, View(), given_name=grid)
    chosen = publish(ablation, folder.grid, wanted, lambda line: print(line, flush=True))
    settings = settings_text(submitted)
    what = f"{chosen.run.run_id} of `{settings}`" if settings else chosen.run.run_id
    print(f"published {what} to {out}; read {out / 'README.md'} before you share it")
    if push:
        print(f"uploaded to {upload(out, push, token, public)}")
        return
    print(f"next: furnace predict --model {out} ..., or hf upload OWNER/NAME {out}")


if __name__ == "__main__":
    run_command(main)
