"""A running `furnace serve` in a thread of the test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from furnace_hpc.inference import Predictor
from furnace_hpc.serving.app import make_app
from furnace_hpc.serving.hosts import Hosts, bound_socket
from furnace_hpc.serving.worker import Worker


@dataclass
class Running:
    """A server, and what it predicts with."""

    port: int
    worker: Worker
    predictor: Predictor

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(
    predictor: Predictor, max_bytes: int = 2**20, max_waiting: int = 8
) -> Iterator[Running]:
    """Serve on a free port until the end."""
    worker = Worker(predictor, max_waiting)
    app: Any = make_app(predictor, worker, Hosts.of("127.0.0.1"), max_bytes)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with bound_socket("127.0.0.1", 0) as opened:
        opened.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Running(opened.getsockname()[1], worker, predictor)
        server.should_exit = True
        thread.join(timeout=60)
    worker.close()
