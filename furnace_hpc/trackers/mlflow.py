"""Send runs to an MLflow server over its REST API. It needs no package.

MLflow chooses the ids of its runs. The tag `furnace.run_id` has Furnace's id, and finds the run
again. The server stores points with equal metric, step, time and value once. Times come from the
records, so a point that is sent twice is shown once.
"""

import base64
import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.runs.state import RunState
from furnace_hpc.trackers.tracker import Delivery, Lost, RunInfo, Start, Update

API = "/api/2.0/mlflow/"
RUN_ID = "furnace.run_id"
# The limits of one request of log-batch.
MAX_ENTRIES, MAX_METRICS, MAX_PARAMS, MAX_TEXT = 1000, 1000, 100, 500
MAX_FOUND = 500  # runs in one answer of search
TIMEOUT_S = 30.0
TRIES, PAUSE_S = 3, 1.0
BUSY = frozenset({429, 500, 502, 503, 504})
GONE = frozenset({"RESOURCE_DOES_NOT_EXIST"})
RUNNING = "RUNNING"
STATUS = {RunState.DONE: "FINISHED", RunState.FAILED: "FAILED"}
_ODD = re.compile(r"[^\w\-./: ]", re.ASCII)


class MLflow:
    """One experiment of an MLflow server."""

    delivery = Delivery.APPEND

    def __init__(self, address: str, experiment: str) -> None:
        self._server, self._name = _Server(address), experiment
        self._experiment = self._experiment_id()
        # our run id -> MLflow's id and start time in ms, oldest first
        self._known: dict[str, list[tuple[str, int]]] | None = None

    @property
    def place(self) -> str:
        """The address of the experiment's page."""
        return f"{self._server.address}/#/experiments/{self._experiment}"

    def send(self, update: Update, state: dict[str, Any]) -> dict[str, Any]:
        """Log new points, and config, tags and status with them."""
        info = update.info
        ours = str(state.get("run", ""))
        if update.start is Start.REPLACE:
            self._delete(info.run_id, self._find(info.run_id))
            ours = ""
        is_new, before = not ours, str(state.get("status", ""))
        if is_new:
            ours, before = self._find_or_create(info)
        try:
            for batch in _batches(update, with_params=is_new or update.start is not Start.APPEND):
                self._server.post("runs/log-batch", {"run_id": ours, **batch})
            status = self._set_status(ours, update, before)
        except _Refused as error:
            if error.code in GONE or "must be in the 'active' state" in str(error):
                raise Lost from None
            raise
        return {"run": ours, "status": status}

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def _experiment_id(self) -> str:
        name = quote(self._name, safe="")
        path = f"experiments/get-by-name?experiment_name={name}"
        with suppress(_Missing):
            found = self._server.get(path)["experiment"]
            if found.get("lifecycle_stage") == "deleted":
                raise ConfigError(
                    f"MLflow's experiment {self._name!r} was deleted. Restore it with `mlflow "
                    f"experiments restore -x {found['experiment_id']}`, or give another --project"
                )
            return str(found["experiment_id"])
        try:
            return str(
                self._server.post("experiments/create", {"name": self._name})["experiment_id"]
            )
        except _Refused:  # another process has just made it
            return str(self._server.get(path)["experiment"]["experiment_id"])

    def _find(self, run_id: str) -> list[tuple[str, int]]:
        """MLflow's ids and start times of one of our runs, oldest first."""
        if self._known is None:
            self._known = {}
            for found in self._search():
                tags = {tag["key"]: tag["value"] for tag in found["data"].get("tags", ())}
                if RUN_ID in tags:
                    ids = self._known.setdefault(tags[RUN_ID], [])
                    ids.append((found["info"]["run_id"], int(found["info"]["start_time"])))
        return list(self._known.get(run_id, ()))

    def _search(self) -> Iterator[dict[str, Any]]:
        wanted = {
            "experiment_ids": [self._experiment],
            "run_view_type": "ACTIVE_ONLY",
            "max_results": MAX_FOUND,
            "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"],
        }
        while True:
            answer = self._server.post("runs/search", wanted)
            yield from answer.get("runs", ())
            token = answer.get("next_page_token")
            if not token:
                return
            wanted["page_token"] = token

    def _find_or_create(self, info: RunInfo) -> tuple[str, str]:
        """MLflow's id of a run, and its status if that is known.

        A run with another start time was replaced by newer code. It is deleted.
        """
        known = self._find(info.run_id)
        same = [(run, start) for run, start in known if start == _ms(info.start_s)][:1]
        self._delete(info.run_id, [each for each in known if each not in same])
        if same:
            return same[0][0], ""
        content = {
            "experiment_id": self._experiment,
            "run_name": info.run_id,
            "start_time": _ms(info.start_s),
            "tags": _pairs({RUN_ID: info.run_id}),
        }
        created = self._server.post("runs/create", content)["run"]["info"]
        return str(created["run_id"]), RUNNING

    def _delete(self, run_id: str, runs: Sequence[tuple[str, int]]) -> None:
        for run, start in runs:
            with suppress(_Missing):
                self._server.post("runs/delete", {"run_id": run})
            if self._known:
                self._known[run_id].remove((run, start))

    def _set_status(self, run: str, update: Update, before: str) -> str:
        """Set the status if it differs from the one before. Return it."""
        info = update.info
        status = STATUS.get(RunState(info.state), RUNNING)
        if status == before:
            return status
        content: dict[str, Any] = {"run_id": run, "status": status}
        if status != RUNNING:
            last = update.records[-1:] or update.all_records()[-1:]
            content["end_time"] = _ms(last[0].time_s if last else info.start_s)
        self._server.post("runs/update", content)
        return status


def _batches(update: Update, with_params: bool) -> Iterator[dict[str, Any]]:
    """The contents of log-batch, each within MLflow's limits."""
    info = update.info
    tags = {f"furnace.{name}": text for name, text in info.tags.items() if name != "run"}
    if report := info.tags.get("report"):
        tags["mlflow.note.content"] = f"Report: {report}"
    params = _pairs(info.config) if with_params else []
    metrics = [
        _metric(name, value, record.time_s, record.step)
        for record in update.records
        for name, value in record.values.items()
    ]
    metrics += [
        _metric(name, value, info.start_s, step) for name, (step, value) in info.summary.items()
    ]
    batch: dict[str, Any] = {"tags": _pairs(tags)}
    while True:
        batch["params"], params = params[:MAX_PARAMS], params[MAX_PARAMS:]
        space = MAX_ENTRIES - len(batch["params"]) - len(batch.get("tags", ()))
        batch["metrics"], metrics = metrics[:space], metrics[space:]
        yield batch
        if not params and not metrics:
            return
        batch = {}


def _metric(name: str, value: float, time_s: float, step: int) -> dict[str, Any]:
    number: float | str = value
    if value != value:
        number = "NaN"
    elif value in (float("inf"), -float("inf")):
        number = "Infinity" if value > 0 else "-Infinity"
    return {"key": _key(name), "value": number, "timestamp": _ms(time_s), "step": step}


def _pairs(content: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": _key(name), "value": str(text)[:MAX_TEXT]} for name, text in content.items()]


def _key(name: str) -> str:
    """The name with the characters that MLflow allows."""
    return _ODD.sub("_", name)[:250]


def _ms(time_s: float) -> int:
    return round(time_s * 1000)


class _Refused(ConfigError):
    """The server refuses a request."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class _Missing(_Refused):
    """The server does not have what the request names."""


class _Server:
    """One connection to the server. Requests are retried after transient errors."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._parts = urlsplit(address)
        self._connection: http.client.HTTPConnection | None = None
        self._headers = {"Content-Type": "application/json", **_authorization()}

    def get(self, path: str) -> dict[str, Any]:
        """Ask for something."""
        return self._request("GET", path, None)

    def post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """Change something, or search."""
        return self._request("POST", path, json.dumps(content).encode())

    def close(self) -> None:
        """Close the connection. The next request opens another."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _request(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        for number in range(TRIES):
            if number:
                time.sleep(PAUSE_S * number)
            try:
                status, content = self._once(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem = str(error) or type(error).__name__
                continue
            if status < 400:
                return _json(content)
            if status not in BUSY:
                raise self._refused(status, content, path)
            problem = f"status {status}: {content[:200].decode('utf-8', 'replace')}"
        raise UnavailableError(
            f"MLflow at {self.address} does not answer ({problem}). Start the server or check "
            f"--at, and repeat the command: it continues"
        )

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect()
        place = self._parts.path.rstrip("/") + API + path
        self._connection.request(method, place, body, self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        context = ssl.create_default_context(
            cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
        )
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)

    def _refused(self, status: int, content: bytes, path: str) -> _Refused:
        answer = _json(content)
        code = str(answer.get("error_code", ""))
        reason = str(answer.get("message", "")) or content[:200].decode("utf-8", "replace")
        if status in (401, 403):
            return _Refused(
                f"MLflow at {self.address} refuses the user (status {status}). Set "
                f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        text = (
            f"MLflow at {self.address} refuses {path.partition('?')[0]} (status {status}): "
            f"{reason[:500]}. Check --at and --project"
        )
        return (_Missing if code in GONE else _Refused)(text, code)


def _json(content: bytes) -> dict[str, Any]:
    """The object in an answer. Empty if it holds anything else."""
    with suppress(ValueError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {}


def _authorization() -> dict[str, str]:
    """The header for the user or token in MLflow's own variables."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        both = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {both}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
