"""A web server on this machine that answers as a test wants."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WebServer(ThreadingHTTPServer):
    """It records what is posted. Each request gets the next answer, and later ones 200."""

    daemon_threads = True

    def __init__(self, *answers: Any) -> None:
        """Take the answers: a status code, `close`, `hang`, or seconds before a 200."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.received: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        """Its address, with a path that is a secret."""
        return f"http://127.0.0.1:{self.server_port}/in/topsecret0123456789"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_POST(self) -> None:
        """Record the text and give the next answer."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(content))
        self.server.paths.append(self.path)
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer == "close":
            self.connection.close()
            return
        if answer == "hang":
            self.server.released.wait(60)
            return
        if isinstance(answer, float):
            self.server.released.wait(answer)
            answer = 200
        self.send_response(answer)
        if answer // 100 == 3:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def serving(*answers: Any) -> Iterator[WebServer]:
    """Yield a server that runs."""
    with WebServer(*answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
