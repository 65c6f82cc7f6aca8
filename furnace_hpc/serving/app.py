"""The routes: the page, /predict and /health."""

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.config.parsing.text_safety import masked
from furnace_hpc.serving.guard import Guard, TooLarge, too_large
from furnace_hpc.serving.hosts import Hosts
from furnace_hpc.serving.page import page_of
from furnace_hpc.serving.worker import Busy, Sample, Upload, Worker

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from furnace_hpc.inference import Predictor

FILES = ("image", "audio")
FIELDS = ("text", "text_pair", "numbers", *FILES)
ASSETS = {"serve.css": "text/css", "serve.js": "text/javascript"}
MAX_FIELDS = 20
MAX_TEXT = 2**20  # bytes of a text


class App:
    """The answers of the server."""

    def __init__(self, predictor: "Predictor", worker: Worker, max_bytes: int) -> None:
        self._exported, self._worker, self._max_bytes = predictor.exported, worker, max_bytes
        self._page = page_of(predictor.exported, max_bytes)

    def routes(self) -> list[Route]:
        """Return the routes. Every other path is not found."""
        return [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/predict", self.predict, methods=["POST"]),
            *(Route(f"/{name}", _asset) for name in ASSETS),
        ]

    async def page(self, request: Request) -> Response:
        """Answer with the page."""
        return HTMLResponse(self._page)

    async def health(self, request: Request) -> Response:
        """Answer with the model and the number of waiting requests."""
        content = {
            "status": "ok",
            "model": self._exported.provenance.run_id,
            "modalities": list(self._exported.modalities),
            "tasks": [task.name for task in self._exported.config.tasks],
            "waiting": self._worker.waiting,
        }
        return JSONResponse(content)

    async def predict(self, request: Request) -> Response:
        """Answer with the prediction for one sample."""
        limits = {"max_files": len(FILES), "max_fields": MAX_FIELDS, "max_part_size": MAX_TEXT}
        try:
            async with request.form(**limits) as form:
                sample = sample_of(form, TEXT_SECOND in self._exported.data.columns)
                return JSONResponse(await self._worker.predict(sample))
        except (HTTPException, ClientDisconnect):
            raise
        except ConfigError as error:
            return problem(400, str(error))
        except TooLarge:
            return problem(413, too_large(self._max_bytes))
        except Busy:
            answer = problem(503, "too many requests are waiting. Try again in a few seconds")
            answer.headers["retry-after"] = "2"
            return answer
        except Exception as error:  # one sample must not end the server
            reason = " ".join(str(error).split())[:200]
            return problem(500, f"the prediction failed ({type(error).__name__}: {reason})")


def sample_of(form: FormData, is_pair: bool) -> Sample:
    """Return what a form gives. Empty fields are left out.

    Raises:
        ConfigError: a field is unknown, is given twice, or has the wrong kind.
    """
    values: dict[str, Any] = {}
    uploads: dict[str, Upload] = {}
    for name, value in form.multi_items():
        if name not in FIELDS:
            raise ConfigError(f"unknown field {name!r}; {nearest(name, FIELDS)}")
        if name in values or name in uploads:
            raise ConfigError(f"{name} is given twice. Give it once")
        if isinstance(value, UploadFile) != (name in FILES):
            got, wanted = ("text", "a file") if name in FILES else ("a file", "text")
            raise ConfigError(f"{name} is {got}, wanted {wanted}")
        if isinstance(value, UploadFile):
            if value.filename or value.size:
                uploads[name] = Upload(value.filename or name, value.file)
        elif value.strip():
            values[name] = value
    if "numbers" in values:
        values["numbers"] = numbers_of(values["numbers"])
    if "text_pair" in values:
        second = values.pop("text_pair")
        values["text"] = [values.get("text", ""), second]
    elif is_pair and "text" in values:
        values["text"] = [values["text"], ""]
    return Sample(values, uploads)


def numbers_of(text: str) -> dict[str, Any]:
    """Return name -> number of a JSON object.

    Raises:
        ConfigError: the text is not a JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'numbers is {text[:60]!r}, wanted a JSON object such as {{"age": 41}}')
    return found


def problem(status: int, reason: str) -> JSONResponse:
    """Return an error as JSON."""
    return JSONResponse({"error": masked(reason)}, status)


async def _asset(request: Request) -> Response:
    name = request.url.path.removeprefix("/")
    text = (files("furnace_hpc.serving") / "assets" / name).read_text(encoding="utf-8")
    return Response(text, media_type=ASSETS[name])


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail)


def make_app(predictor: "Predictor", worker: Worker, hosts: Hosts, max_bytes: int) -> "ASGIApp":
    """Return the application with its guard."""
    app = Starlette(
        routes=App(predictor, worker, max_bytes).routes(),
        exception_handlers={HTTPException: _http_problem},
    )
    return Guard(app, hosts, max_bytes)
