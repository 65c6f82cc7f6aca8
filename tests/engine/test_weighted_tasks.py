"""Runs with class weights, focal loss, ordinal levels and a regression, on one rank and on two."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from killed_ranks import run_attempt
from table_files import sentence

from furnace_hpc import pack
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.parsing.lookup import find_file, read_json
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.host import lifecycle

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]
STEPS, BATCH = 12, 24
PLAIN = [
    {"name": "kind", "kind": "single_label"},
    {"name": "risk", "kind": "ordinal"},
    {"name": "price", "kind": "regression"},
]
WEIGHTED = [
    PLAIN[0] | {"class_weights": "balanced", "focal_gamma": 2.0},
    PLAIN[1] | {"class_weights": "balanced"},
    PLAIN[2],
]


@pytest.fixture(name="root", scope="module")
def packed(tmp_path_factory) -> Path:
    """A pack in which one class and one level are rare."""
    place = tmp_path_factory.mktemp("weighted")
    rows = range(120)
    kinds = ["rare" if number % 10 == 0 else "often" for number in rows]
    levels = [("low", "mid", "high")[min(number % 8, 2)] for number in rows]
    table = {
        "text": [
            sentence(number, f"{kind}word {level}word")
            for number, kind, level in zip(rows, kinds, levels, strict=True)
        ],
        "kind": kinds,
        "risk": levels,
        "price": [100.0 + 10 * (number % 8) for number in rows],
    }
    pl.DataFrame(table).write_csv(place / "mine.csv")
    pack.main(
        args=[
            *("table", "--source", str(place / "mine.csv"), "--text", "text", "--label", "kind"),
            *("--label", "risk:ordinal", "--levels", "risk=low,mid,high"),
            *("--label", "price:regression", "--split", "60/20/20", "--stratify", "kind"),
            *("--out", str(place / "mine"), "--workers", "1"),
        ],
        standalone_mode=False,
    )
    return place


def losses(place: Path, root: Path, tasks: list[dict], world_size: int) -> dict[str, np.ndarray]:
    """Train a run. Return task -> losses of its steps."""
    config = TrainConfig.model_validate(
        {
            "data": {"name": "mine"},
            "tasks": tasks,
            "model": {
                "modalities": ("text",),
                **{"width": 16, "num_heads": 2, "feedforward": 32, "dropout": 0.0},
            },
            "deepspeed": read_json(find_file("DeepSpeed file", "zero1_fp32")),
            "steps": STEPS,
            "global_batch_size": BATCH,
            "evaluation": {"every": STEPS},
            "checkpoint_every": STEPS,
            "log_every": 1,
        }
    )
    spec = RunSpec(
        grid="weighted",
        variant="base",
        config=config,
        resources=Resources(),
        data_fingerprint=read_manifest(root / "mine").fingerprint,
    )
    folder = place / spec.run_id
    lifecycle.write_spec(str(folder), spec.model_dump_json())
    assert run_attempt(folder, root / "mine", world_size, None) == ("done", 0)
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert {"test/kind/f1_macro", "test/risk/qwk", "test/price/mae"} <= set(metrics)
    records = map(json.loads, (folder / "metrics/1.jsonl").open())
    steps = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in steps] == [*range(1, STEPS + 1)]
    return {
        task["name"]: np.array([record[f"train/{task['name']}/loss"] for record in steps])
        for task in tasks
    }


def test_two_ranks_train_as_one(root, tmp_path):
    """Weights come from the whole train split, and not from the batch of a rank.

    Before the first update the weighted losses differ from the plain ones, and the regression's
    does not.
    """
    one = losses(tmp_path / "one", root, WEIGHTED, 1)
    two = losses(tmp_path / "two", root, WEIGHTED, 2)
    plain = losses(tmp_path / "plain", root, PLAIN, 1)
    for task, expected in one.items():
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(two[task], expected, rtol=1e-4)
    assert one["price"][0] == pytest.approx(plain["price"][0], rel=1e-6)
    for task in ("kind", "risk"):
        assert one[task][0] != pytest.approx(plain[task][0], rel=1e-2)
    assert all(found[-1] < found[0] for found in one.values())
