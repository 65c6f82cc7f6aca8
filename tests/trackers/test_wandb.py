"""Offline folders of W&B, read back with the messages of its own library."""

import json
from types import SimpleNamespace

import pytest
import wandb_files
from tracked_study import make_runs
from tracker_views import WandbView, curves, wanted

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.trackers.mirror import mirror
from furnace_hpc.trackers.wandb import Wandb

wandb = pytest.importorskip("wandb", reason="needs the package wandb")


@pytest.mark.slow
def test_an_offline_folder_holds_the_whole_run(tmp_path):
    folder, runs = make_runs(tmp_path, 2)
    view = WandbView(folder)
    for run in runs:
        run.begin()
        run.train(110)
    assert mirror(folder, view.target).num_changed == 2
    runs[0].end("preempted")
    runs[0].begin()
    runs[0].train(420)
    runs[0].finish()
    done = mirror(folder, view.target, report="https://host/report.html")
    assert done.num_changed == 2  # the address of the report is new for both
    assert done.place.startswith("the runs after `wandb sync ")
    shown = view.shown()
    assert sorted(shown) == sorted(run.folder.run_id for run in runs)
    for run in runs:
        assert curves(shown[run.folder.run_id]) == wanted(run)
    assert len(view.files()) == 2
    [file] = [path for path in view.files() if runs[0].folder.run_id in path.name]
    about = wandb_files.run_record(file)
    assert (about.run_id, about.project, about.run_group) == (
        runs[0].folder.run_id,
        "study",
        "base",
    )
    assert list(about.tags) == ["grid:study", "variant:base", "seed:0"]
    assert about.notes == "Report: https://host/report.html"
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert (config["steps"], config["furnace"]["attempts"]) == (500, "2")
    final = wandb_files.summary(file)
    assert final["final/test/digit/loss"] == 0.5
    assert final["cost/gpu_hours"] > 0


def test_a_refusal_has_one_sentence_of_wandb(tmp_path, monkeypatch):
    """The full stop at the end of W&B's text is left out."""
    tracker = Wandb("study", None, tmp_path, None)

    def refuse(update):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(tracker, "_log", refuse)
    update = SimpleNamespace(info=SimpleNamespace(run_id="base-s0-01234567"))
    with pytest.raises(ConfigError) as caught:
        tracker.send(update, {})
    assert str(caught.value) == (
        "W&B refuses run base-s0-01234567 (No API key configured. Use `wandb login` to log in). "
        "Call `wandb login`, or write folders with --offline"
    )
