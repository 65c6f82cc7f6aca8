"""A real MLflow server with SQLite, read back over its API."""

from collections import Counter

import pytest
from tracked_study import make_runs
from tracker_views import MLflowView, curves, wanted

from furnace_hpc.config.cluster import TrackerTarget
from furnace_hpc.config.errors import ConfigError, UnavailableError
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.trackers import mlflow
from furnace_hpc.trackers.mirror import mirror

pytestmark = pytest.mark.slow


def test_a_run_is_found_again(tmp_path, mlflow_address):
    """After a requeue, and after the cursor was lost."""
    folder, [run] = make_runs(tmp_path, 1)
    view = MLflowView(folder, mlflow_address)
    run.begin()
    run.train(110)
    mirror(folder, view.target)
    [cursor] = folder.trackers.glob("*.json")
    run.end("preempted")
    run.begin()
    run.train(60)
    cursor.unlink()
    mirror(folder, view.target)
    run.train(360)
    run.finish()
    mirror(folder, view.target, report="https://host/report.html")
    points = view.shown()[run.folder.run_id]
    assert curves(points) == wanted(run)
    assert set(points.values()) == {1}
    [shown] = view.runs()
    tags = {tag["key"]: tag["value"] for tag in shown["data"]["tags"]}
    assert (tags["furnace.variant"], tags["furnace.seed"]) == ("base", "0")
    assert tags["mlflow.note.content"] == "Report: https://host/report.html"
    assert shown["info"]["status"] == "FINISHED"
    params = {param["key"]: param["value"] for param in shown["data"]["params"]}
    assert params["steps"] == "500"
    latest = {metric["key"]: metric["value"] for metric in shown["data"]["metrics"]}
    assert latest["final/test/digit/loss"] == 0.5
    assert latest["cost/gpu_hours"] > 0


def test_numbers_that_json_lacks_and_long_runs(tmp_path, mlflow_address):
    """3,000 points take several requests. Names have characters that MLflow refuses."""
    folder, [run] = make_runs(tmp_path, 1)
    view = MLflowView(folder, mlflow_address)
    run.begin()
    metrics = MetricsFile(run.folder.metrics(1))
    for step in range(1, 3001):
        metrics.write({"step": step, "kind": "train", "train/loss@drop=text": float(step)})
    metrics.write({"step": 3001, "kind": "train", "train/nan": float("nan")})
    metrics.write({"step": 3001, "kind": "val", "val/up": float("inf")})
    mirror(folder, view.target)
    points = view.shown()[run.folder.run_id]
    assert Counter(name for name, _, _ in points) == {
        "train/loss_drop_text": 3000,
        "train/nan": 1,
        "val/up": 1,
    }


def test_a_deleted_run_is_sent_again(tmp_path, mlflow_address):
    folder, [run] = make_runs(tmp_path, 1)
    view = MLflowView(folder, mlflow_address)
    run.begin()
    run.train(50)
    mirror(folder, view.target)
    view.call("runs/delete", {"run_id": view.runs()[0]["info"]["run_id"]})
    run.train(10)
    mirror(folder, view.target)
    assert curves(view.shown()[run.folder.run_id]) == wanted(run)


def test_records_are_sent_after_an_outage(tmp_path, mlflow_address, monkeypatch):
    monkeypatch.setattr(mlflow, "PAUSE_S", 0.0)
    folder, [run] = make_runs(tmp_path, 1)
    view = MLflowView(folder, mlflow_address)
    run.begin()
    run.train(50)
    mirror(folder, view.target)
    run.train(30)
    with monkeypatch.context() as down:
        down.setattr(mlflow.http.client.HTTPConnection, "connect", _refuse)
        with pytest.raises(UnavailableError, match="does not answer .*refused.*it continues"):
            mirror(folder, view.target)
    run.train(30)
    mirror(folder, view.target)
    assert curves(view.shown()[run.folder.run_id]) == wanted(run)


def test_a_wrong_address_names_the_fix(tmp_path):
    folder, _ = make_runs(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"is 'sqlite:///x', wanted http://.*mlflow server"):
        mirror(folder, TrackerTarget(to="mlflow", at="sqlite:///x"))


def _refuse(connection) -> None:
    raise ConnectionRefusedError("connection refused")
