"""Early stopping: a run that was interrupted stops at the same step as an undisturbed one."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from killed_ranks import Point, run_attempt
from killed_run import differences, new_run
from make import make_config

from furnace_hpc.engine.loop import Progress

STEPS = 30
RULES: dict[str, Any] = {
    "evaluation": {"every": 2, "batch_size": 20},
    "early_stopping": {"patience": 3},
    "optimizer": {"lr": 0.02},
    "schedule": {"decay": "constant"},
}


def new(place: Path, data: Path, select: str = "best") -> Path:
    changes = RULES | {"evaluation": RULES["evaluation"] | {"select": select}}
    return new_run(place, data, stage=2, size=2, steps=STEPS, changes=changes)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def val_curve(folder: Path) -> dict[int, float]:
    """Step -> accuracy on val, of the newest evaluation of that step."""
    found = {}
    for path in sorted(folder.glob("metrics/*.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            if record["kind"] == "val":
                found[record["step"]] = record["val/digit/accuracy"]
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    folder = new(tmp_path_factory.mktemp("calm") / "place", small_data)
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    return folder


@pytest.mark.distributed
def test_it_stops_after_patience(calm: Path):
    """Three evaluations in a row have not been better than the best one."""
    curve, result = val_curve(calm), result_of(calm)
    best = max(curve, key=lambda step: (curve[step], -step))
    assert result["selected_step"] == best
    assert result["steps"] == max(curve) == best + 3 * 2 < STEPS
    assert result["stopped_early"] is True
    log = (calm / "logs/1-0.log").read_text()
    assert "stopped early after step" in log
    for step, accuracy in curve.items():  # once: rank 0 prints it
        assert log.count(f"step {step} of {STEPS}: val/digit/accuracy {accuracy:.4g}\n") == 1
    at_best = result["metrics"]["val/digit/accuracy"]
    assert at_best == curve[best]


# One attempt after another. Checkpoints are saved every 3 steps, and val is evaluated every 2. The
# run stops after step 12.
INTERRUPTIONS = {
    "signal before a step": (Point("stop", how="step 8"), "requeue"),
    "kill after an evaluation": (Point("save", nth=1, how="before"), "fail"),
    "signal in an evaluation": (Point("stop", rank=1, how="evaluation on val"), "requeue"),
    "signal before the last evaluation": (Point("stop", how="step 11"), "requeue"),
    "signal after it": (Point("stop", rank=1, how="evaluation on test"), "requeue"),
}


@pytest.mark.distributed
def test_resumed_runs_stop_at_the_same_step(calm: Path, small_data: Path, tmp_path: Path):
    folder = new(tmp_path / "place", small_data)
    for name, (point, decision) in INTERRUPTIONS.items():
        assert run_attempt(folder, small_data, 2, point)[0] == decision, name
        assert not (folder / "result.json").exists(), name
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    assert differences(folder, calm) == []
    for key in ("steps", "stopped_early", "selected_step", "parameters_sha256"):
        assert result_of(folder)[key] == result_of(calm)[key]
    assert '"kind": "train"' not in (folder / "metrics/6.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.distributed
def test_the_last_step_may_be_the_selected_one(calm: Path, small_data: Path, tmp_path: Path):
    """It trains as long as with `select: best`, and tests the parameters at the end."""
    folder = new(tmp_path / "place", small_data, select="last")
    stop = Point("stop", rank=1, how="evaluation on test")
    assert run_attempt(folder, small_data, 2, stop)[0] == "requeue"
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    last, best = result_of(folder), result_of(calm)
    assert last["selected_step"] == last["steps"] == best["steps"]
    assert last["parameters_sha256"] == best["parameters_sha256"]


def noted(values: list[float], patience: int, steps: int = 100) -> int | None:
    """The number of the evaluation that ends a run with these values. None if none does."""
    config, progress = make_config(early_stopping__patience=patience, steps=steps), Progress()
    for number, value in enumerate(values, 1):
        progress.step += 10
        progress.note_value(value)
        if progress.is_stopped_early(config):
            return number
    return None


@pytest.mark.parametrize(
    ("values", "patience", "end"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, None),
        ([0.5, 0.4], 1, 2),
        ([0.5, 0.4], 2, None),
        ([0.5, 0.4, 0.6, 0.5, 0.55], 2, 5),  # counted from the new best value
        ([0.5, 0.5, 0.5], 2, 3),  # an equal value is no improvement
        ([-2.0, -1.0, -1.5], 1, 3),  # a loss
        ([math.nan, 0.1, math.nan, math.nan], 2, 4),  # any value beats NaN, NaN beats none
    ],
)
def test_patience(values, patience, end):
    assert noted(values, patience) == end


def test_the_last_step_is_no_early_stop():
    assert noted([0.5, 0.4], patience=1, steps=20) is None
    assert Progress(step=20).is_at_end(make_config(steps=20))
    assert not Progress(step=19).is_at_end(make_config(steps=20))


def test_runs_without_the_rule_train_on():
    progress = Progress(step=10, without_improvement=99)
    assert not progress.is_at_end(make_config(steps=20))
