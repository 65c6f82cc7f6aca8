"""Serve the predictions of a model over HTTP: `furnace serve --model DIR`."""

from pathlib import Path
from typing import Annotated

import typer

from furnace_hpc.cli import run_command

Model = Annotated[Path, typer.Option(metavar="DIR", help="folder made by `furnace export`")]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="address to listen on")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="port; 0 chooses a free one")]
AllowNetwork = Annotated[
    bool,
    typer.Option(
        "--allow-network",
        help="allow a --host that other machines reach; there is no password and no encryption",
    ),
]
MaxMib = Annotated[int, typer.Option(min=1, max=4096, help="largest request in MiB")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [a GPU if there is one]")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="run the model's own code, if it has any: it can do all you can"
    ),
]


def main(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_network: AllowNetwork = False,
    max_mib: MaxMib = 25,
    device: Device = None,
    trust_code: TrustCode = False,
) -> None:
    """Serve a page that predicts from text, pictures, sounds and numbers with an exported model.

    POST /predict returns the JSON of `furnace predict --json`. GET /health returns the state of the
    server. One sample is predicted at a time. Other machines cannot reach the server without
    --allow-network. Ctrl-C stops it.
    """
    from furnace_hpc.serving.server import serve

    serve(model, host, port, allow_network, max_mib, device, trust_code)


if __name__ == "__main__":
    run_command(main)
