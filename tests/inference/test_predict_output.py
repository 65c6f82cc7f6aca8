"""`furnace predict --output`: the rows of a table with columns of answers."""

import io
import json

import polars as pl
import pytest
from table_files import image_bytes, sentence, write_memes
from use_study import exported, tridigits_model, tridigits_samples  # noqa: F401  fixtures

from furnace_hpc import pack
from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.inference import answer_table
from furnace_hpc.inference.answer_columns import write_table
from furnace_hpc.inference.answer_table import TableJob, predict_table
from furnace_hpc.inference.batch_predict import answer_file
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.predict import main

TASKS = [{"name": "hateful", "kind": "single_label"}]
ANSWERS = ["hateful_predicted", "hateful_probability", "predicted_from", "prediction_error"]
READERS = {
    "csv": lambda path: pl.read_csv(path, schema_overrides={"hateful_predicted": pl.String}),
    "tsv": lambda path: pl.read_csv(
        path, separator="\t", schema_overrides={"hateful_predicted": pl.String}
    ),
    "jsonl": pl.read_ndjson,
    "parquet": pl.read_parquet,
}


@pytest.fixture(scope="module")
def memes(tmp_path_factory):
    """The raw folder, and the folder of a model of its pack."""
    place = tmp_path_factory.mktemp("memes")
    raw = write_memes(place / "raw")
    names = {"train": "train", "val": "dev_seen", "test": "test_seen"}
    files = [part for key, name in names.items() for part in (f"--{key}", f"{raw / name}.jsonl")]
    options = ("--text", "text", "--image", "img", "--label", "hateful=label", "--id", "id")
    options += ("--image-size", "32", "--out", str(place / "pack"), "--workers", "1")
    pack.main(args=["table", *files, *options], standalone_mode=False)
    changes = {"tasks": TASKS, "model__modalities": ("text", "image")}
    return raw, exported(place, place / "pack", **changes)


@pytest.fixture(scope="module")
def predictor(memes):
    return Predictor.load(memes[1], "cpu")


@pytest.fixture
def raw(memes):
    return memes[0]


def printed(predictor, path) -> list[dict]:
    """The answers that the command prints as JSON."""
    out = io.StringIO()
    answer_file(predictor, path, out, io.StringIO(), None, True, 4)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def write(frame: pl.DataFrame, path) -> None:
    if path.suffix == ".tsv":
        frame.write_csv(path, separator="\t")
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        getattr(frame, f"write_{path.suffix[1:]}")(path)


@pytest.mark.parametrize("form", READERS)
def test_each_form_has_its_rows_and_the_answers(tmp_path, raw, predictor, form):
    rows = pl.read_ndjson(raw / "test_seen.jsonl")
    path, out = raw / f"rows.{form}", tmp_path / f"answers.{form}"
    write(rows, path)
    predict_table(predictor, TableJob(path, out, batch_size=4))
    found = READERS[form](out)
    assert found.columns == [*rows.columns, *ANSWERS]
    assert found.select(rows.columns).equals(rows)
    expected = printed(predictor, path)
    assert len(expected) == 6
    for row, answer in zip(found.iter_rows(named=True), expected, strict=True):
        task = answer["tasks"]["hateful"]
        assert row["hateful_predicted"] == task["label"]
        assert row["hateful_probability"] == pytest.approx(task["probabilities"][task["label"]])
        assert row["predicted_from"] == "text,image"
        assert row["prediction_error"] is None
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_json_lines_take_the_packed_columns(raw, predictor):
    """The file that was packed is also input. Its label is left out."""
    by_names = raw / "names.jsonl"
    rows = pl.read_ndjson(raw / "test_seen.jsonl")
    write(rows.select("id", "text", pl.col("img").alias("image")), by_names)
    packed = printed(predictor, raw / "test_seen.jsonl")
    assert packed == printed(predictor, by_names)
    assert len({str(answer["tasks"]) for answer in packed}) == 6


def test_images_inside_parquet(tmp_path, raw, predictor):
    """They give the answers of their files. A CSV gets their names."""
    rows = pl.read_ndjson(raw / "test_seen.jsonl")
    inside = [{"bytes": (raw / name).read_bytes(), "path": name} for name in rows["img"]]
    path = tmp_path / "inside.parquet"
    rows.with_columns(pl.Series("img", inside)).write_parquet(path)
    for form in ("parquet", "csv"):
        predict_table(predictor, TableJob(path, tmp_path / f"answers.{form}"))
    predict_table(predictor, TableJob(raw / "test_seen.jsonl", tmp_path / "expected.parquet"))
    expected = pl.read_parquet(tmp_path / "expected.parquet")
    found = pl.read_parquet(tmp_path / "answers.parquet")
    assert found["img"].to_list() == inside
    assert found.select(ANSWERS).equals(expected.select(ANSWERS))
    assert READERS["csv"](tmp_path / "answers.csv")["img"].to_list() == rows["img"].to_list()


def test_columns_and_media_root_can_be_given(tmp_path, raw, predictor):
    rows = pl.read_ndjson(raw / "test_seen.jsonl").rename({"text": "words", "img": "file"})
    path = tmp_path / "other.csv"
    rows.write_csv(path)
    columns = {"text": ["words"], "image": ["file"]}
    predict_table(predictor, TableJob(path, tmp_path / "a.csv", columns, raw))
    predict_table(predictor, TableJob(raw / "test_seen.jsonl", tmp_path / "b.csv"))
    found, expected = (READERS["csv"](tmp_path / name) for name in ("a.csv", "b.csv"))
    assert found.select(ANSWERS).equals(expected.select(ANSWERS))
    with pytest.raises(ConfigError, match="--column text= 'wrds' is not a column; did you mean"):
        predict_table(predictor, TableJob(path, tmp_path / "c.csv", {"text": ["wrds"]}, raw))
    assert not list(tmp_path.glob("c.csv*"))


def bad_rows(raw, tmp_path):
    """Six rows. The image of the third is missing, and the fifth is empty."""
    rows = pl.read_ndjson(raw / "test_seen.jsonl").to_dicts()
    rows[2]["img"] = "img/none.png"
    rows[4] |= {"img": None, "text": None}
    path = raw / f"{tmp_path.name}.jsonl"
    write(pl.DataFrame(rows), path)
    return path


def test_rows_without_an_answer(tmp_path, raw, predictor):
    """They are in the output in order. Too many are an error, and a second try is short."""
    path, out = bad_rows(raw, tmp_path), tmp_path / "answers.jsonl"
    with pytest.raises(ConfigError) as raised:
        predict_table(predictor, TableJob(path, out))
    message = str(raised.value)
    assert message.startswith("2 of 6 rows have no answer (33.3%; --max-refused is 5.0%), first")
    assert "first row 3: image '" in message
    assert message.endswith("--max-refused 0.34")
    assert not out.exists()
    predict_table(predictor, TableJob(path, out, max_refused=0.34))
    found = pl.read_ndjson(out)
    assert found["prediction_error"].is_not_null().to_list() == [False, False, True, False, True, 0]
    assert found["hateful_predicted"].is_null().to_list() == [False, False, True, False, True, 0]
    lines = (tmp_path / "answers.refused.jsonl").read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    assert [(line["row"], line["id"]) for line in refused] == [
        (3, str(found["id"][2])),
        (5, str(found["id"][4])),
    ]
    assert "none.png' is missing" in refused[0]["error"]
    assert "nothing is given" in refused[1]["error"]


def test_an_interrupted_command_resumes(tmp_path, raw, predictor, monkeypatch):
    """No file looks complete. Half a line is dropped, and the bytes are those of one command."""
    path, out = bad_rows(raw, tmp_path), tmp_path / "answers.csv"
    job = TableJob(path, out, max_refused=0.5, batch_size=2)
    answers_of, calls = answer_table.answers_of, []

    def interrupted(own, batch):
        calls.append([row.line for row in batch])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers_of(own, batch)

    monkeypatch.setattr(answer_table, "answers_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_table(predictor, job)
    assert not out.exists()
    unfinished = tmp_path / "answers.csv.predicting" / "answers.jsonl"
    with unfinished.open("a") as file:
        file.write('{"predicted_from": "te')
    predict_table(predictor, job)
    assert calls == [[1, 2], [3, 4], [5, 6], [5, 6]]
    whole = tmp_path / "whole.csv"
    predict_table(predictor, TableJob(path, whole, max_refused=0.5, batch_size=2))
    assert out.read_bytes() == whole.read_bytes()
    refused = [tmp_path / f"{name}.refused.jsonl" for name in ("answers", "whole")]
    assert refused[0].read_bytes() == refused[1].read_bytes()


def test_unfinished_answers_of_other_input(tmp_path, raw, predictor, monkeypatch):
    path, out = bad_rows(raw, tmp_path), tmp_path / "answers.csv"
    with pytest.raises(ConfigError, match="rows have no answer"):
        predict_table(predictor, TableJob(path, out))
    path.write_text(path.read_text().replace("mean", "kind"))
    with pytest.raises(ConfigError, match="unfinished answers of another model, input or option"):
        predict_table(predictor, TableJob(path, out, max_refused=0.5))
    predict_table(predictor, TableJob(path, out, max_refused=0.5, force=True))
    assert len(READERS["csv"](out)) == 6


def test_a_column_of_an_answer_exists_already(tmp_path, raw, predictor):
    path = tmp_path / "again.csv"
    path.write_text("text,hateful_predicted\nkind words,1\n")
    with pytest.raises(ConfigError, match="already has the column 'hateful_predicted'"):
        predict_table(predictor, TableJob(path, tmp_path / "answers.csv"))
    assert [file.name for file in tmp_path.iterdir()] == ["again.csv"]


def test_columns_that_a_form_cannot_hold(tmp_path):
    """Of a file in a tar or table it gets the name. Bytes and lists of numbers are left out."""
    tar = {"tar": "/a.tar", "offset": 512, "size": 9, "path": "7.png"}
    rows = pl.LazyFrame({"a": [tar], "b": [b"x"], "c": [[1, 2]], "d": [["x", "y"]], "e": [1.5]})
    answers = pl.LazyFrame({"tags_predicted": [["u", "v"]], "prediction_error": [None]})
    assert write_table(rows, answers, tmp_path / "a.csv", "csv") == ["b", "c"]
    text = (tmp_path / "a.csv").read_text()
    assert text == "a,d,e,tags_predicted,prediction_error\n7.png,x|y,1.5,u|v,\n"
    assert write_table(rows, answers, tmp_path / "a.jsonl", "jsonl") == ["b"]
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert line == {
        **{"a": "7.png", "c": [1, 2], "d": ["x", "y"], "e": 1.5},
        **{"tags_predicted": ["u", "v"], "prediction_error": None},
    }


def test_a_folder_of_images(tmp_path, predictor):
    """A folder without a table lists its images, as it does for packing."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(image_bytes(number))
    out = tmp_path / "answers.csv"
    predict_table(predictor, TableJob(tmp_path / "images", out, {"image": ["path"]}))
    found = READERS["csv"](out)
    assert found["path"].to_list() == ["0.png", "1.png", "2.png"]
    assert found["predicted_from"].to_list() == ["image"] * 3


def test_regression_and_several_labels(tmp_path):
    """Each target has a column, and the labels of a row are one cell."""
    rows = {
        "text": [sentence(number, "text") for number in range(20)],
        "tags": [("a", "b", "a|b")[number % 3] for number in range(20)],
        "x": [str(number) for number in range(20)],
        "y": [f"{number * number}" for number in range(20)],
    }
    path = tmp_path / "mine.csv"
    pl.DataFrame(rows).write_csv(path)
    labels = ("--label", "tags=tags:multi_label", "--label", "place=x,y:regression")
    options = ("--source", str(path), "--text", "text", *labels, "--split", "60/20/20")
    out = ("--out", str(tmp_path / "pack"), "--workers", "1")
    pack.main(args=["table", *options, *out], standalone_mode=False)
    tasks = [{"name": "tags", "kind": "multi_label"}, {"name": "place", "kind": "regression"}]
    model = exported(tmp_path, tmp_path / "pack", tasks=tasks, model__modalities=("text",))
    predictor = Predictor.load(model, "cpu")
    for form in ("csv", "parquet"):
        job = TableJob(path, tmp_path / f"answers.{form}", with_probabilities=True)
        predict_table(predictor, job)
    found = pl.read_parquet(tmp_path / "answers.parquet")
    expected = [answer["tasks"] for answer in printed(predictor, path)]
    assert found["tags_predicted"].to_list() == [task["tags"]["labels"] for task in expected]
    for target in "xy":
        numbers = [task["place"]["values"][target] for task in expected]
        assert found[f"place_predicted_{target}"].to_list() == pytest.approx(numbers)
        p = [task["tags"]["probabilities"]["b"] for task in expected]
        assert found["tags_p_b"].to_list() == pytest.approx(p)
    flat = pl.read_csv(tmp_path / "answers.csv", schema_overrides={"tags_predicted": pl.String})
    joined = ["|".join(labels) or "" for labels in found["tags_predicted"]]
    assert [labels or "" for labels in flat["tags_predicted"]] == joined


def test_other_models_take_the_names_of_modalities(tmp_path, model, samples):
    """Such as TriDigits, which is not packed from a table."""
    out = tmp_path / "answers.csv"
    predict_table(Predictor.load(model, "cpu"), TableJob(samples, out))
    found = pl.read_csv(out)
    ids = [json.loads(line)["id"] for line in samples.read_text().splitlines()]
    assert found["id"].to_list() == ids
    assert found["predicted_from"].to_list() == ["text,image,audio"] * len(ids)
    assert set(found["digit_predicted"]) <= set(range(10))


def test_the_command(tmp_path, memes, capsys):
    raw, model = memes
    source, out = str(raw / "test_seen.jsonl"), str(tmp_path / "answers.csv")
    words = ["--model", str(model), "--device", "cpu", "--input", source, "--output"]
    for more, expected in (
        ([out], 0),
        ([out], f"{out} exists. Give another --output, or replace it with --force"),
        ([f"{out}x", "--force"], "has the wrong ending. Give one of .csv, .tsv, .jsonl"),
        ([out, "--force", "--column", "sound=a"], "has the name 'sound'; valid: id, image, text"),
        ([out, "--force", "--json"], "--json and --output are both given"),
        ([out, "--force"], 0),
    ):
        with pytest.raises(SystemExit) as ended:
            run_command(main, [*words, *more])
        printed_ = capsys.readouterr()
        if expected == 0:
            assert f"{out}: 6 rows" in printed_.out
            assert ended.value.code == 0
        else:
            assert expected in printed_.err
            assert ended.value.code == 2
    with pytest.raises(SystemExit):
        run_command(main, ["--model", str(model), "--text", "a", "--output", out])
    assert "--output is given without --input" in capsys.readouterr().err
