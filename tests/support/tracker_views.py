"""What each tracker shows of a grid, read with its own reader: run -> points with their number."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import wandb_files
from tracked_study import TrainedRun, counted

from furnace_hpc.config.cluster import TrackerTarget
from furnace_hpc.runs.folder import GridFolder

# path of the program `mlflow`, which may be of another environment, or address of a server
MLFLOW = "FURNACE_TEST_MLFLOW"
Points = Counter  # (name, step, value) -> how often it is shown


def single(value: float) -> float:
    """The number in 32 bits."""
    return struct.unpack("f", struct.pack("f", value))[0]


def wanted(run: TrainedRun, digits: int = 64) -> Points:
    """The points of the run folder, as the tables count them. Measured times are left out."""
    change = single if digits == 32 else float
    points = counted(run.folder).items()
    return Counter(
        (name, step, change(value)) for (name, step), value in points if name != "step_time_s"
    )


def curves(points: Points) -> Points:
    """Without results, costs and measured times."""
    left_out = ("final/", "cost/", "step_time_s")
    return Counter({key: n for key, n in points.items() if not key[0].startswith(left_out)})


class TensorBoardView:
    """Event files below the grid's folder."""

    name, digits = "tensorboard", 32

    def __init__(self, folder: GridFolder) -> None:
        pytest.importorskip("tensorboard", reason="needs the package tensorboard")
        self.target, self._folder = TrackerTarget(to="tensorboard"), folder

    def shown(self) -> dict[str, Points]:
        from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

        multiplexer = EventMultiplexer(size_guidance={"scalars": 0})
        place = self._folder.trackers / "tensorboard"
        multiplexer.AddRunsFromDirectory(str(place)).Reload()
        found = {}
        for run, tags in multiplexer.Runs().items():
            points = found.setdefault(run, Counter())
            for tag in tags["scalars"]:
                events = multiplexer.Scalars(run, tag)
                points.update((tag, event.step, event.value) for event in events)
        return found


class WandbView:
    """Offline folders of W&B."""

    name, digits = "wandb", 64

    def __init__(self, folder: GridFolder) -> None:
        pytest.importorskip("wandb", reason="needs the package wandb")
        self.target, self._folder = TrackerTarget(to="wandb", offline=True), folder

    def files(self) -> list[Path]:
        return sorted((self._folder.trackers / "wandb").glob("offline-run-*/*.wandb"))

    def shown(self) -> dict[str, Points]:
        found: dict[str, Points] = {}
        for file in self.files():
            run = wandb_files.run_record(file).run_id
            points = found.setdefault(run, Counter())
            points.update(wandb_files.points(file))
            summary = wandb_files.summary(file).items()
            points.update((name, -1, value) for name, value in summary if name[:6] == "final/")
        return found


class TrackioView:
    """trackio's local store."""

    name, digits = "trackio", 64

    def __init__(self, folder: GridFolder) -> None:
        pytest.importorskip("trackio", reason="needs the package trackio")
        self.target = TrackerTarget(to="trackio", at=str(folder.path.parent / "trackio"))
        self._folder = folder.path.parent / "trackio"

    def shown(self) -> dict[str, Points]:
        """In a process of its own: trackio takes its folder when it is imported."""
        code = (
            "import json\nfrom trackio.sqlite_storage import SQLiteStorage as store\n"
            "runs = [record['id'] for record in store.get_run_records('study')]\n"
            "print(json.dumps([[run, store.get_logs('study', run, run_id=run)] for run in runs]))"
        )
        environment = os.environ | {"TRACKIO_DIR": str(self._folder)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=99,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Points] = {}
        for run, lines in json.loads(done.stdout.splitlines()[-1]):
            assert run not in found, "split"
            found[run] = Counter(
                (name, line["step"], value)
                for line in lines
                for name, value in line.items()
                if name not in ("step", "timestamp")
            )
        return found


class MLflowView:
    """A real server of MLflow with SQLite, on this machine."""

    name, digits = "mlflow", 64

    def __init__(self, folder: GridFolder, address: str) -> None:
        self.address = address
        self.project = f"study-{folder.path.parent.name}"
        self.target = TrackerTarget(to="mlflow", at=address, project=self.project)

    def shown(self) -> dict[str, Points]:
        found: dict[str, Points] = {}
        for run in self.runs():
            run_id = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}["furnace.run_id"]
            assert run_id not in found, "split"
            found[run_id] = points = Counter()
            for metric in run["data"].get("metrics", ()):
                words = {"run_id": run["info"]["run_id"], "metric_key": metric["key"]}
                history = self.call(f"metrics/get-history?{urllib.parse.urlencode(words)}")
                points.update((m["key"], m["step"], m["value"]) for m in history["metrics"])
        return found

    def runs(self) -> list[dict]:
        """The runs that the server shows."""
        name = urllib.parse.quote(self.project)
        experiment = self.call(f"experiments/get-by-name?experiment_name={name}")["experiment"]
        wanted = {"experiment_ids": [experiment["experiment_id"]], "max_results": 1000}
        return self.call("runs/search", wanted).get("runs", [])

    def call(self, path: str, content: dict | None = None) -> dict:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/{path}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


def start_mlflow(place: Path) -> tuple[subprocess.Popen, str]:
    """Start a server, and return it with its address. Skips the test if there is no `mlflow`."""
    program = os.environ.get(MLFLOW) or shutil.which("mlflow")
    if program is None:
        pytest.skip(f"needs the program mlflow: pip install mlflow elsewhere, and set {MLFLOW}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{place}/mlflow.db"]
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [program, *words], cwd=place, stdout=log, stderr=log, start_new_session=True
        )
    address, deadline_s = f"http://127.0.0.1:{port}", time.monotonic() + 240
    while time.monotonic() < deadline_s:
        assert server.poll() is None, (place / "log").read_text()
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            return server, address
        except OSError:
            time.sleep(0.5)
    raise AssertionError((place / "log").read_text())
