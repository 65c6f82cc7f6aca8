"""From a CSV with texts and numbers to a table, an exported model and its answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from furnace_hpc.data.columns import open_columns
from furnace_hpc.inference.predictor import Predictor

ROWS, SEEDS, LIMIT = 240, 2, 2.0


def write_patients(path: Path) -> pl.DataFrame:
    """The label follows from two numbers. A fifth of the ages is missing, texts say nothing."""
    rng = np.random.default_rng(3)
    age, pulse = rng.normal(50, 12, ROWS).round(1), rng.normal(70, 9, ROWS).round()
    risk = (age - 50) / 12 + (pulse - 70) / 9
    missing = rng.random(ROWS) < 0.2
    words = [" ".join(rng.choice(["calm", "tired", "slept", "ate"], 5)) for _ in range(ROWS)]
    rows = {
        "report": words,
        "age": [None if gone else value for gone, value in zip(missing, age, strict=True)],
        "pulse": pulse,
        "risk": np.where(np.where(missing, risk - (age - 50) / 12, risk) > 0, "high", "low"),
    }
    frame = pl.DataFrame(rows, strict=False)
    frame.write_csv(path)
    return frame


@pytest.fixture
def furnace(tmp_path):
    """A function that runs a command in the folder of the test."""
    drop = ("FURNACE_", "SLURM_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    environment |= {"HOME": str(tmp_path), "COLUMNS": "200"}

    def run(*arguments: str) -> str:
        program = str(Path(sys.prefix) / "bin" / "furnace")
        done = subprocess.run(
            [program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_numbers_from_a_csv_to_answers(tmp_path, furnace):
    """The rows with numbers learn the label, ZeRO stage 3 on two ranks included."""
    frame = write_patients(tmp_path / "patients.csv")
    columns = ("--text", "report", "--numbers", "age,pulse", "--label", "risk")
    packed = ("--source", "patients.csv", *columns, "--split", "70/15/15")
    furnace("pack", "table", *packed)
    furnace("new", "patients", "--data", "data/patients")
    path = tmp_path / "experiments" / "patients.yaml"
    grid = path.read_text()
    assert "modalities: [text, numbers]" in grid
    assert "only_numbers: {model.modalities: [numbers]}" in grid
    grid = grid.replace("seeds: [0, 1, 2, 3, 4]", f"seeds: {list(range(SEEDS))}")
    dropped = "{deepspeed: zero3, model.modality_dropout: 0.2, resources.processes_per_node: 2}"
    grid = grid.replace("epochs: 29", "epochs: 15").replace("epochs: 58", "epochs: 30")
    path.write_text(f"{grid}  zero3: {dropped}\n")
    furnace("submit", "--grid", "patients", "--cluster", "local")

    (results,) = (tmp_path / "results").iterdir()
    table = pl.read_csv(results / "table.csv")
    assert table["n"].to_list() == [SEEDS] * len(table)
    mean = dict(zip(table["variant"], table["mean"], strict=True))
    assert min(mean[row] for row in ("all", "only_numbers", "concat", "zero3")) > 0.85, mean
    assert mean["only_text"] < 0.75, mean

    run = next((tmp_path / "runs" / "patients").glob("all-s0-*"))
    printed = furnace("export", str(run), "--out", "exported", "--format", "torch_export")
    assert "with the run's own for 36 test samples" in printed
    _check_answers(tmp_path, frame, furnace)


def _check_answers(place: Path, frame: pl.DataFrame, furnace) -> None:
    """A table, JSON lines and Python give the same answers as the stored columns."""
    predictor = Predictor.load(place / "exported", "cpu")
    test = open_columns(place / "data" / "patients").split("test")
    rows = [int(name) - 1 for name in test["source_id"]]
    chosen = frame[rows].drop("risk")
    chosen.write_csv(place / "new.csv")
    lines = [
        {"text": row["report"], "numbers": {"age": row["age"], "pulse": row["pulse"]}}
        for row in chosen.iter_rows(named=True)
    ]
    (place / "new.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ("predict", "--model", "exported", "--json", "--input")
    by_table = furnace(*options, "new.csv").splitlines()
    assert by_table == furnace(*options, "new.jsonl").splitlines()
    answers = [json.loads(line)["tasks"]["risk"] for line in by_table]
    right = [answer["label"] for answer in answers] == frame["risk"].gather(rows)
    assert right.mean() > 0.85
    for row, line in enumerate(lines[:5]):
        values = predictor.read(line)
        np.testing.assert_array_equal(values["numbers"], test["numbers"][row])
        found = predictor.predict(**line).tasks["risk"].probabilities
        assert found == pytest.approx(answers[row]["probabilities"], abs=1e-5)
    one = furnace("predict", "--model", "exported", "--numbers", "pulse=110,age=90")
    assert one.splitlines()[0] == "from numbers; without text"
    assert one.splitlines()[1] == "risk: high"
