"""Early stopping: a run that was interrupted stops at the same step as an undisturbed one."""

import json
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
    "optimizer": {"lr": 0.01},
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
    print(val_curve(calm), result_of(calm)["steps"], result_of(calm)["selected_step"])
    assert 0
