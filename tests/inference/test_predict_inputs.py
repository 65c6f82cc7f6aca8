"""Numbers, text pairs and segments in tables and JSON lines for `furnace predict`."""

import io
import json

import numpy as np
import polars as pl
import pytest
import soundfile
from table_files import sentence
from use_study import exported

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.inference.answer_table import TableJob, predict_table
from furnace_hpc.inference.batch_predict import answer_file
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.table_rows import open_input, parse_columns

ROWS, RATE_HZ, SECONDS = 20, 8000, 2.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Text pairs, numbers and segments of sounds with labels, their pack, and a model."""
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(4):
        noise = np.random.default_rng(number).normal(0, 0.2, int(RATE_HZ * SECONDS))
        soundfile.write(folder / f"{number}.wav", noise, RATE_HZ, subtype="PCM_16")
    rows = {
        "premise": [sentence(number, "a") for number in range(ROWS)],
        "hypothesis": [sentence(number, "b") for number in range(ROWS)],
        "age": [None if number % 5 == 1 else 20 + number for number in range(ROWS)],
        "pulse": [70.5 + number for number in range(ROWS)],
        "file": [f"{number // 5}.wav" for number in range(ROWS)],
        "from": [0.25 * (number % 5) for number in range(ROWS)],
        "to": [0.25 * (number % 5) + 0.5 for number in range(ROWS)],
        "kind": ["ab"[number % 2] for number in range(ROWS)],
        "part": [("train", "val", "test", "train")[number // 5] for number in range(ROWS)],
    }
    pl.DataFrame(rows).write_csv(folder / "rows.csv")
    inputs = ("--text", "premise", "--text-pair", "hypothesis", "--numbers", "age,pulse")
    sounds = ("--audio", "file", "--audio-start", "from", "--audio-end", "to")
    stored = ("--audio-store", "waveform", "--audio-rate", RATE_HZ, "--audio-seconds", 0.5)
    words = ("table", "--source", folder / "rows.csv", *inputs, *sounds, *stored, "--label", "kind")
    words += ("--split-column", "part", "--out", folder / "pack", "--workers", 1)
    pack.main(args=list(map(str, words)), standalone_mode=False)
    changes = {"tasks": [{"name": "kind"}], "model__modalities": ("text", "numbers")}
    exported(folder, folder / "pack", **changes)
    return folder


@pytest.fixture
def predictor(place):
    return Predictor.load(place / "model", "cpu")


@pytest.fixture
def rows(place):
    """Three rows, with an empty number in the second one."""
    return pl.read_csv(place / "rows.csv").head(3)


def from_lines(predictor, path, lines) -> list[dict]:
    """The answers to JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = io.StringIO()
    answer_file(predictor, path, out, io.StringIO(), None, True, 4)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    return [answer.get("tasks", answer.get("error")) for answer in found]


def from_table(predictor, tmp_path, frame, columns=None) -> pl.DataFrame:
    """The rows with columns of answers."""
    frame.write_csv(tmp_path / "rows.csv")
    out = tmp_path / "answers.parquet"
    predict_table(predictor, TableJob(tmp_path / "rows.csv", out, columns or {}, max_refused=1))
    found = pl.read_parquet(out)
    out.unlink()
    return found


def test_tables_and_lines_have_the_same_answers(tmp_path, predictor, rows):
    """A line has the packed columns, or the keys `text` and `numbers`."""
    cells = rows.to_dicts()
    expected = [
        predictor.predict(
            text=(row["premise"], row["hypothesis"]),
            numbers={"age": row["age"], "pulse": row["pulse"]},
        ).tasks["kind"]
        for row in cells
    ]
    assert len({str(answer) for answer in expected}) == 3
    found = from_table(predictor, tmp_path, rows)
    assert found["predicted_from"].to_list() == ["text,numbers"] * 3
    own = [max(answer.probabilities.values()) for answer in expected]
    assert found["kind_probability"].to_list() == pytest.approx(own, abs=1e-6)
    keys = [
        {"text": [row["premise"], row["hypothesis"]], "numbers": [row["age"], row["pulse"]]}
        for row in cells
    ]
    for lines in (cells, keys):
        answers = from_lines(predictor, tmp_path / "lines.jsonl", lines)
        for answer, wanted in zip(answers, expected, strict=True):
            assert answer["kind"]["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-6)


def test_a_bad_number_affects_its_row_only(tmp_path, predictor, rows):
    ages = pl.Series("age", ["20", "old", "inf"])
    found = from_table(predictor, tmp_path, rows.with_columns(ages))
    assert found["prediction_error"].to_list() == [
        None,
        "number 'age' is 'old', wanted a finite number",
        "number 'age' is inf, wanted a finite number",
    ]
    whole = from_table(predictor, tmp_path, rows)
    assert found["kind_probability"][0] == pytest.approx(whole["kind_probability"][0], abs=1e-6)


def test_a_table_may_lack_columns(tmp_path, predictor, rows):
    """Missing numbers, and a pair without its second text."""
    found = from_table(predictor, tmp_path, rows.drop("age", "hypothesis"))
    for row, probability in zip(rows.to_dicts(), found["kind_probability"], strict=True):
        pair, numbers = (row["premise"], ""), {"pulse": row["pulse"]}
        answer = predictor.predict(text=pair, numbers=numbers).tasks["kind"]
        assert probability == pytest.approx(max(answer.probabilities.values()), abs=1e-6)
    found = from_table(predictor, tmp_path, rows.drop("premise"))
    assert found["predicted_from"].to_list() == ["numbers"] * 3


def test_other_columns_can_be_given(tmp_path, predictor, rows):
    names = {"age": "years", "pulse": "beats", "premise": "first", "hypothesis": "second"}
    given = ["numbers=years", "numbers=beats", "text=first", "text-pair=second"]
    columns = parse_columns(given, predictor.exported)
    other = from_table(predictor, tmp_path, rows.rename(names), columns)
    same = from_table(predictor, tmp_path, rows)
    assert other["kind_probability"].to_list() == same["kind_probability"].to_list()
    with pytest.raises(ConfigError, match="wanted a column for each of age, pulse, in this order"):
        parse_columns(["numbers=years"], predictor.exported)
    with pytest.raises(ConfigError, match="'audio-start=from' has the name 'audio-start'; valid"):
        parse_columns(["audio-start=from"], predictor.exported)


def test_segments_of_waveforms_are_those_of_the_pack(tmp_path, place):
    """From a table and from JSON lines."""
    changes = {"tasks": [{"name": "kind"}], "model__audio": {"encoder": "random:wav2vec2"}}
    model = exported(tmp_path, place / "pack", model__modalities=("audio",), **changes)
    predictor = Predictor.load(model, "cpu")
    packed = open_columns(place / "pack").split("test")
    (tmp_path / "scratch").mkdir()
    with open_input(
        place / "rows.csv", predictor.exported, {}, None, tmp_path / "scratch"
    ) as table:
        samples = [sample for _, _, sample in table.samples()]
    for row, name in enumerate(packed["source_id"]):
        sample = samples[int(name) - 1]
        values = predictor.read(sample)
        np.testing.assert_array_equal(values["audio"], packed["audio"][row])
        assert values["audio_length"] == packed["audio_length"][row] == RATE_HZ // 2
    assert packed["audio"][0].any()
    rows = pl.read_csv(place / "rows.csv")
    starts = rows["from"].cast(pl.String).to_list()
    starts[1] = "later"
    rows.with_columns(pl.Series("from", starts)).head(3).write_csv(place / "late.csv")
    job = TableJob(place / "late.csv", tmp_path / "answers.csv", max_refused=1)
    predict_table(predictor, job)
    found = pl.read_csv(tmp_path / "answers.csv")
    assert found["prediction_error"].to_list() == [
        None,
        "number 'start' is 'later', wanted a finite number",
        None,
    ]
    lines = [
        {"file": row["file"], "from": row["from"], "to": row["to"]} for row in rows[:3].to_dicts()
    ]
    answers = from_lines(predictor, place / "lines.jsonl", lines)
    for line in (0, 2):
        probability = max(answers[line]["kind"]["probabilities"].values())
        assert found["kind_probability"][line] == pytest.approx(probability, abs=1e-5)
