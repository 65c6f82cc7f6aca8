"""trackio's local store, read back with its own library."""

import json
import sqlite3

import pytest
from tracked_study import make_runs
from tracker_views import TrackioView, curves, wanted

from furnace_hpc.trackers.mirror import mirror

pytest.importorskip("trackio", reason="needs the package trackio")


def test_a_requeued_run_stays_one_run(tmp_path):
    folder, [run] = make_runs(tmp_path, 1)
    view = TrackioView(folder)
    run.begin()
    run.train(110)
    mirror(folder, view.target)
    [cursor] = folder.trackers.glob("*.json")
    before = cursor.read_bytes()
    run.end("preempted")
    run.begin()
    run.train(60)
    mirror(folder, view.target)
    cursor.write_bytes(before)  # a kill came before the cursor was written
    run.train(360)
    run.finish()
    mirror(folder, view.target, report="https://host/report.html")
    points = view.shown()[run.folder.run_id]
    assert curves(points) == wanted(run)
    assert set(points.values()) == {1}
    final = {name: value for name, _, value in points}
    assert final["final/test/digit/loss"] == 0.5
    with sqlite3.connect(tmp_path / "trackio" / "study.db") as store:
        [[text]] = store.execute("select config from configs").fetchall()
    config = json.loads(text)
    assert (config["steps"], config["furnace.seed"]) == (500, "0")
    assert config["furnace.report"] == "https://host/report.html"
