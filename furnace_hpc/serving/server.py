"""Load a model, open a port and answer until Ctrl-C."""

import socket
from importlib.util import find_spec
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.serving.hosts import OPEN, Hosts, bound_socket, check_host, is_loopback

PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
MAX_CONNECTIONS = 64
STOP_S = 10  # for answers in progress, after Ctrl-C
MIB = 2**20
_NOTE = "all users of this machine can reach it, other machines cannot. Ctrl-C stops it"


def serve(
    model: Path,
    host: str,
    port: int,
    allow_network: bool,
    max_mib: int,
    device: str | None,
    trust_code: bool,
) -> None:
    """Answer requests until Ctrl-C.

    Raises:
        ConfigError: a package is missing, the address may not or cannot be opened, or the model
            cannot be loaded.
    """
    if missing := [name for module, name in PACKAGES.items() if find_spec(module) is None]:
        raise ConfigError(
            f"furnace serve needs packages that are not installed: {', '.join(missing)}. "
            f"Run pip install 'furnace-hpc[serve]'"
        )
    check_host(host, port, allow_network)
    with bound_socket(host, port) as opened:
        opened.listen(128)
        _answer(model, host, opened, max_mib * MIB, device, trust_code)


def _answer(
    model: Path,
    host: str,
    opened: socket.socket,
    max_bytes: int,
    device: str | None,
    trust_code: bool,
) -> None:
    import uvicorn

    from furnace_hpc.inference.batch_predict import decoding_elsewhere
    from furnace_hpc.inference.predictor import Predictor
    from furnace_hpc.serving.app import make_app
    from furnace_hpc.serving.worker import Worker

    predictor = Predictor.load(model, device, trust_code)
    worker = Worker(predictor)
    app = make_app(predictor, worker, Hosts.of(host), max_bytes)
    config = uvicorn.Config(
        app,
        log_level="error",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_S,
    )
    server = uvicorn.Server(config)
    print(f"{predictor.exported.provenance.run_id} answers at {_url(host, opened)}")
    print(f"note: {OPEN}" if not is_loopback(host) else _NOTE, flush=True)
    with decoding_elsewhere(predictor):
        worker.warm_up()
        try:
            server.run(sockets=[opened])
        except KeyboardInterrupt:
            pass
        finally:
            worker.close()
    print(f"stopped after {worker.answered:,} answers")


def _url(host: str, opened: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{opened.getsockname()[1]}"
