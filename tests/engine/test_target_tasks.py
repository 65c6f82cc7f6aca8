"""Runs with regression and ordinal tasks: real ranks, a kill, export and predict."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from killed_run import differences
from made_once import made_once
from scipy import stats
from sklearn import metrics as sklearn_metrics
from table_files import sentence

from furnace_hpc import pack
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.parsing.lookup import find_file, read_json
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.data.columns import open_columns
from furnace_hpc.host import lifecycle
from furnace_hpc.inference.batch_predict import answer_file, to_text
from furnace_hpc.inference.export import export
from furnace_hpc.inference.predictor import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 30
TASKS = [
    {"name": "mood", "kind": "regression"},
    {"name": "price", "kind": "regression"},
    {"name": "risk", "kind": "ordinal"},
]


def new_run(place: Path, root: Path) -> Path:
    config = TrainConfig.model_validate(
        {
            "data": {"name": "mine"},
            "tasks": TASKS,
            "model": {"modalities": ("text",), "width": 16, "num_heads": 2, "feedforward": 32},
            "deepspeed": read_json(find_file("DeepSpeed file", "zero1")),
            "steps": STEPS,
            "global_batch_size": 8,
            "evaluation": {"every": 10, "batch_size": 16},
            "checkpoint_every": 5,
            "log_every": 1,
        }
    )
    spec = RunSpec(
        grid="targets",
        variant="base",
        config=config,
        resources=Resources(),
        data_fingerprint=read_manifest(root / "mine").fingerprint,
    )
    lifecycle.write_spec(str(place / spec.run_id), spec.model_dump_json())
    return place / spec.run_id


def started(run: Path, root: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "furnace_hpc.train", str(run), "--data-root", str(root)]
    return subprocess.Popen(words, start_new_session=True)


def write_table(path: Path) -> Path:
    """A mood, a price and a risk that the words of a text determine."""
    rows = []
    for number in range(120):
        level = number % 3
        mood, energy = math.sin(number % 7), 20.0 + 5 * level
        words = f"{'abcdefg'[number % 7]}tone {('low', 'mid', 'high')[level]}key"
        rows.append(
            {
                "text": sentence(number, words),
                "valence": mood,
                "energy": energy,
                "price": 1e6 * (1 + level),
                "risk": ("low", "mid", "high")[level],
            }
        )
    pl.DataFrame(rows).write_csv(path)
    return path


@pytest.fixture(name="study", scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a pack, and a run that nothing disturbed."""

    def make(place: Path) -> None:
        pack.main(
            args=[
                *("table", "--source", str(write_table(place / "mine.csv")), "--text", "text"),
                *("--label", "mood=valence,energy:regression", "--label", "price:regression"),
                *("--label", "risk:ordinal", "--levels", "risk=low,mid,high"),
                *("--split", "60/20/20", "--out", str(place / "data/mine"), "--workers", "1"),
            ],
            standalone_mode=False,
        )
        assert started(new_run(place / "runs", place / "data"), place / "data").wait() == 0

    return made_once(tmp_path_factory, "target-tasks", make)


def run_of(study: Path) -> Path:
    (found,) = (study / "runs").glob("base-s0-*")
    return found


def test_scores_are_those_of_the_predictions(study):
    """They are in original units, and agree with scikit-learn and scipy."""
    metrics = json.loads((run_of(study) / "result.json").read_text())["metrics"]
    columns = open_columns(study / "data/mine")
    for split in ("val", "test"):
        with np.load(run_of(study) / f"predictions/{split}.npz") as kept:
            predicted, target = kept["logits.mood"], kept["label.mood"]
            log_probability, level = kept["logits.risk"], kept["label.risk"]
        assert np.array_equal(target, columns.split(split)["label.mood"])
        pairs = list(zip(target.T, predicted.T, strict=True))
        expected = {
            "mood/mae": sklearn_metrics.mean_absolute_error(target, predicted),
            "mood/rmse": sklearn_metrics.root_mean_squared_error(target, predicted),
            "mood/r2": sklearn_metrics.r2_score(target, predicted),
            "mood/pearson": np.mean([stats.pearsonr(*pair)[0] for pair in pairs]),
            "mood/spearman": np.mean([stats.spearmanr(*pair)[0] for pair in pairs]),
            "mood/mae:valence": sklearn_metrics.mean_absolute_error(*pairs[0]),
            "mood/pearson:energy": stats.pearsonr(*pairs[1])[0],
            "risk/qwk": sklearn_metrics.cohen_kappa_score(
                level, log_probability.argmax(1), weights="quadratic"
            ),
            "risk/mae": sklearn_metrics.mean_absolute_error(level, log_probability.argmax(1)),
            "risk/accuracy": sklearn_metrics.accuracy_score(level, log_probability.argmax(1)),
        }
        for name, value in expected.items():
            assert metrics[f"{split}/{name}"] == pytest.approx(value, rel=1e-9), name
        assert np.exp(log_probability).sum(1) == pytest.approx(1, abs=1e-5)
    assert metrics["test/mood/mae@text"] == pytest.approx(metrics["test/mood/mae"], rel=1e-6)
    assert 0 < metrics["test/mood/mae"] < 20


def test_the_step_with_the_lowest_error_is_selected(study):
    result = json.loads((run_of(study) / "result.json").read_text())
    records = [json.loads(line) for line in (run_of(study) / "metrics/1.jsonl").open()]
    errors = {r["step"]: r["val/mood/mae"] for r in records if r["kind"] == "val"}
    assert sorted(errors) == [10, 20, 30]
    assert result["selected_step"] == min(errors, key=errors.get)
    assert result["metrics"]["val/mood/mae"] == min(errors.values())
    assert all(r.get("model_tflop_s", 1) > 0 for r in records if r["kind"] == "train")


def test_a_killed_run_resumes_exactly(study, tmp_path):
    run = new_run(tmp_path / "runs", study / "data")
    process = started(run, study / "data")
    deadline = time.monotonic() + 300
    while not any(".tmp" not in path.name for path in run.glob("checkpoints/step-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "result.json").exists()
    assert started(run, study / "data").wait() == 0
    second = [json.loads(line) for line in (run / "metrics/2.jsonl").open()]
    assert min(record["step"] for record in second if record["kind"] == "train") > 5
    assert differences(run, run_of(study)) == []


def test_predict_answers_in_original_units(study, tmp_path):
    """The exported model answers what the run predicted, and its program too."""
    lines: list[str] = []
    out = tmp_path / "model"
    export(run_of(study), out, None, study / "data", None, True, False, lines.append)
    assert any("equal bit for bit with the run's own" in line for line in lines)
    predictor = Predictor.load(out, "cpu")
    with np.load(run_of(study) / "predictions/test.npz") as kept:
        wanted, price = kept["logits.mood"], kept["logits.price"]
    names = open_columns(study / "data/mine").split("test")["source_id"]
    table = pl.read_csv(study / "mine.csv")
    texts = [table["text"][int(name) - 1] for name in names]
    source = tmp_path / "rows.csv"
    pl.DataFrame({"text": texts}).write_csv(source)
    written = io.StringIO()
    assert answer_file(predictor, source, written, io.StringIO(), None, True, 8) == 0
    answers = [json.loads(line)["tasks"] for line in written.getvalue().splitlines()]
    for answer, row, money in zip(answers, wanted, price, strict=True):
        values = answer["mood"]["values"]
        assert [values["valence"], values["energy"]] == pytest.approx(row.tolist(), rel=1e-4)
        assert answer["price"]["values"]["price"] == pytest.approx(money[0], rel=1e-4)
        assert sum(answer["risk"]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["risk"]["label"] in ("low", "mid", "high")
    shown = to_text(predictor.predict(text=texts[0]), ("text",), None).splitlines()
    assert shown[1].startswith("mood: valence ")
    assert ", energy " in shown[1]
    assert float(shown[2].removeprefix("price: ")) == pytest.approx(price[0, 0], rel=1e-4)
