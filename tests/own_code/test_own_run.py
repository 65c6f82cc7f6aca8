"""Runs with own code from submit to prediction, on this machine's queue."""

import json
import sys
from pathlib import Path

import forked_commands
import pytest
from made_once import made_once
from own_code_study import NETWORK, PACKAGE, write_grid, write_package

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.inference.predictor import Predictor

pytestmark = pytest.mark.slow

ROWS = {
    "own": NETWORK
    | {
        "loss.extra": {f"{PACKAGE}.losses:shrink": 0.01},
        "evaluation.extra": {f"{PACKAGE}.losses:error_rate": {"percent": True}},
    },
    "concat": {
        "model.fusion": "concat",
        "evaluation.extra": {f"{PACKAGE}.losses:error_rate": {}},
    },
}


def furnace(place: Path, name: str, *words: object):
    command = [sys.executable, "-m", f"furnace_hpc.{name}", *map(str, words)]
    return forked_commands.run(command, cwd=place, timeout=580)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, small_root: Path) -> Path:
    """A finished grid with an own network. The working copy of its code is broken afterwards."""

    def make(place: Path) -> None:
        package = write_package(place)
        grid = write_grid(place, ROWS, metrics=["test/digit/accuracy", "test/digit/error_rate"])
        where = ("--cluster", "local", "--data-root", small_root)
        done = furnace(place, "submit", "--grid", grid, *where)
        assert done.returncode == 0, done.stdout + done.stderr
        (package / "net.py").write_text("raise RuntimeError('of the working directory')\n")

    return made_once(tmp_path_factory, "own_code", make)


def run_of(study: Path, row: str) -> Path:
    (found,) = (study / "runs" / "own").glob(f"{row}-s0-*")
    return found


def test_a_run_uses_the_code_of_its_snapshot(study):
    run = run_of(study, "own")
    result = json.loads((run / "result.json").read_text())
    spec = json.loads((run / "spec.json").read_text())
    assert spec["config"]["own_code"]
    accuracy = result["metrics"]["test/digit/accuracy"]
    assert result["metrics"]["test/digit/error_rate"] == pytest.approx(100 * (1 - accuracy))
    assert "test/digit/error_rate@text" in result["metrics"]
    (copied,) = (study / "runs" / "own" / "code").glob(f"*/own_code/{PACKAGE}/net.py")
    assert "class MyNet" in copied.read_text()
    first = json.loads((run / "metrics" / "1.jsonl").read_text().splitlines()[0])
    assert first["train/shrink"] > 0


def test_the_table_needs_no_working_copy(study):
    """The table of the submitted grid is made although the code has changed since."""
    grid = study / "runs" / "own" / "grid.yaml"
    done = furnace(study, "aggregate", "--grid", grid, "--runs-root", study / "runs")
    assert "2 of 2" in done.stdout or done.returncode == 0, done.stdout + done.stderr


def test_an_exported_model_asks_for_trust(study, small_root, tmp_path):
    """Its code runs only with --trust-code, and only if it is the code of the run."""
    out = tmp_path / "model"
    done = furnace(study, "export", run_of(study, "own"), "--out", out, "--data-root", small_root)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.raises(ConfigError, match="add --trust-code if you trust it"):
        Predictor.load(out, "cpu")
    answer = Predictor.load(out, "cpu", trust_code=True).predict(text="it is even")
    assert not list(out.rglob("__pycache__"))  # it would not be what a reader of the code sees
    assert len(answer.tasks["digit"].probabilities) == 10
    (out / "own_code" / PACKAGE / "net.py").write_text("print('changed')\n")
    with pytest.raises(ConfigError, match="has changed since the export"):
        Predictor.load(out, "cpu", trust_code=True)


def test_check_trains_a_row_and_finds_nothing(study, small_root, tmp_path):
    """All nine contracts of the template's kind of network, with real runs."""
    write_package(tmp_path)
    grid = write_grid(tmp_path, {"own": NETWORK})
    done = furnace(tmp_path, "check", "--grid", grid, "--data-root", small_root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("own: ok: ") == 9
