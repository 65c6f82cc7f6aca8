"""`furnace predict` with a model of a user's table: CSV and Parquet give what JSON lines give."""

import io
import json

import polars as pl
import pytest
from table_files import write_memes
from use_study import exported

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.inference.batch_predict import answer_file
from furnace_hpc.inference.predictor import Predictor

TASKS = [{"name": "hateful", "kind": "single_label"}]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The raw folder, and a model of its pack."""
    place = tmp_path_factory.mktemp("memes")
    raw = write_memes(place / "raw")
    options = {"train": "train", "val": "dev_seen", "test": "test_seen"}
    files = [part for split, name in options.items() for part in (f"--{split}", f"{name}.jsonl")]
    files = [str(raw / part) if part.endswith("jsonl") else part for part in files]
    pack.main(
        args=[
            *("table", *files, "--text", "text", "--image", "img", "--label", "hateful=label"),
            *("--id", "id", "--image-size", "32", "--out", str(place / "pack"), "--workers", "1"),
        ],
        standalone_mode=False,
    )
    changes = {"tasks": TASKS, "model__modalities": ("text", "image")}
    return raw, Predictor.load(exported(place, place / "pack", **changes), "cpu")


def answers(predictor, path) -> list[dict]:
    out = io.StringIO()
    failed = answer_file(predictor, path, out, io.StringIO(), None, True, 4)
    assert failed == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_give_the_answers_of_json_lines(study, ending):
    raw, predictor = study
    table = pl.read_ndjson(raw / "test_seen.jsonl")
    lines = [
        {"id": str(row["id"]), "text": row["text"], "image": row["img"]}
        for row in table.iter_rows(named=True)
    ]
    by_lines = raw / "lines.jsonl"
    by_lines.write_text("\n".join(map(json.dumps, lines)))
    path = raw / f"rows.{ending}"
    getattr(table, f"write_{ending}")(path)
    expected, found = answers(predictor, by_lines), answers(predictor, path)
    assert len(expected) == 6
    assert found == expected
    assert len({str(answer["tasks"]) for answer in found}) == 6


def test_an_absent_column_is_an_absent_modality(study):
    raw, predictor = study
    path = raw / "text.csv"
    pl.DataFrame({"text": ["kind words", "mean words"]}).write_csv(path)
    assert [answer["modalities"] for answer in answers(predictor, path)] == [["text"], ["text"]]


def test_a_table_without_inputs_is_an_error(study):
    raw, predictor = study
    path = raw / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="has none of the columns text, img; it has a, b"):
        answers(predictor, path)
