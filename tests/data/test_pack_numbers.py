"""`furnace pack table --numbers`: a modality of numbers."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from table_files import sentence

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import number_names
from furnace_hpc.config.preprocessing.fit import packing_command
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.data.packing.statistics import number_statistics

ROWS = 40
AGE = [None if number % 8 == 3 else 20 + 37 * number % 53 for number in range(ROWS)]
TIME = [1.7e9 + 3 * number + 0.25 * (number % 7) for number in range(ROWS)]
LABEL = ["yes" if number % 3 else "no" for number in range(ROWS)]
GIVEN = ("--numbers", "age,time", "--label", "label", "--text", "text")


def table_of(tmp_path, **changes):
    path = tmp_path / "mine.csv"
    columns = {"text": [sentence(number, "x") for number in range(ROWS)]}
    columns |= {"age": AGE, "time": TIME, "label": LABEL}
    pl.DataFrame(columns | changes, strict=False).write_csv(path)
    return path


def run(tmp_path, *arguments, source=None):
    out = tmp_path / "packed"
    pack.main(
        args=[
            *("table", "--source", str(source or table_of(tmp_path)), "--split", "60/20/20"),
            *("--workers", "1", "--out", str(out), *map(str, arguments)),
        ],
        standalone_mode=False,
    )
    return open_columns(out)


def rows_of(columns, split):
    """The row of the table of each sample, from 0."""
    return [int(name) - 1 for name in columns.split(split)["source_id"]]


def error_of(tmp_path, *arguments, **changes) -> str:
    with pytest.raises(ConfigError) as raised:
        run(tmp_path, *arguments, source=table_of(tmp_path, **changes))
    assert not (tmp_path / "packed").exists()
    return str(raised.value)


def test_numbers_are_stored_as_given(tmp_path, capsys):
    """They are fp64 with NaN for missing cells. The manifest has statistics of the train split."""
    columns = run(tmp_path, *GIVEN, "--verify")
    manifest = columns.manifest
    command = packing_command(manifest, "text", "bert", "mine")
    assert "--text text --numbers age --numbers time --label label=label" in command
    assert manifest.modalities == ("text", "numbers")
    assert number_names(manifest) == ("age", "time")
    table = np.array([AGE, TIME], np.float64).T
    for split in manifest.splits:
        np.testing.assert_array_equal(
            columns.split(split)["numbers"], table[rows_of(columns, split)]
        )
    train = table[rows_of(columns, "train")]
    statistics = manifest.statistics["numbers"]
    np.testing.assert_allclose(statistics.mean, np.nanmean(train, axis=0), rtol=1e-14)
    np.testing.assert_allclose(statistics.std, np.nanstd(train, axis=0), rtol=1e-9)
    assert "age: median" in capsys.readouterr().out
    page = (tmp_path / "packed/profile.html").read_text()
    assert "<li>numbers: 40 rows have it" in page
    assert "<div>numbers: age 20, time 1.7e+09</div>" in page


def test_batches_have_standardised_numbers(tmp_path):
    """A missing number is 0 with the mark 0. Large numbers keep their differences."""
    columns = run(tmp_path, *GIVEN)
    reader = BatchReader(columns, "train", ("text", "numbers"), ("label",), torch.device("cpu"))
    batch = reader.read(np.arange(24))
    found = batch.inputs["numbers"]
    stored = columns.split("train")["numbers"]
    known = ~np.isnan(stored)
    assert found.shape == (24, 2, 2)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found[..., 1].numpy(), known)
    scaled = (stored - np.nanmean(stored, axis=0)) / np.nanstd(stored, axis=0)
    np.testing.assert_allclose(found[..., 0].numpy(), np.where(known, scaled, 0), atol=1e-6)
    assert batch.complete == frozenset()  # texts have unequal lengths
    rows = np.flatnonzero(known.all(1))
    alone = BatchReader(columns, "train", ("numbers",), ("label",), torch.device("cpu"))
    assert alone.read(rows).complete == {"numbers"}
    assert alone.read(np.arange(24)).complete == frozenset()


def test_a_row_without_numbers_lacks_the_modality(tmp_path):
    """Empty cells, NaN and null are missing. Without a text, such a row is refused."""
    time = [None if number in (5, 6) else value for number, value in enumerate(TIME)]
    age: list = [7.5 + number for number in range(ROWS)]
    age[5:7] = ["NaN", "null"]
    source = table_of(tmp_path, age=age, time=time)
    columns = run(tmp_path, *GIVEN, source=source)
    present = {}
    for split in columns.manifest.splits:
        bits = columns.split(split)["present"].tolist()
        present |= dict(zip(rows_of(columns, split), bits, strict=True))
    assert [row for row in range(ROWS) if present[row] == [1, 0]] == [5, 6]
    only = run(tmp_path, *GIVEN[:4], "--force", source=source)
    assert sum(only.manifest.splits.values()) == ROWS - 2
    required = run(tmp_path, *GIVEN, "--require", "numbers", "--force", source=source)
    assert sum(required.manifest.splits.values()) == ROWS - 2


def test_spreadsheets_and_truth_values_are_numbers(tmp_path):
    """Decimal commas, and true and false of JSON lines."""
    path = tmp_path / "mine.jsonl"
    rows = [
        {"height": f"1,{number:02}", "smokes": number % 2 == 0, "label": LABEL[number]}
        for number in range(ROWS)
    ]
    pl.DataFrame(rows).write_ndjson(path)
    columns = run(
        tmp_path, "--numbers", "height", "--numbers", "smokes", "--label", "label", source=path
    )
    for split in columns.manifest.splits:
        expected = [[float(f"1.{row:02}"), (row + 1) % 2] for row in rows_of(columns, split)]
        assert columns.split(split)["numbers"].tolist() == expected


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"age": ["old", *AGE[1:]]}, "--numbers: row 1 has no finite number in column 'age'"),
        (
            {"time": [*TIME[:-1], math.inf]},
            "--numbers: row 40 has no finite number in column 'time'",
        ),
        ({"age": [None] * ROWS}, "--numbers: column 'age' has no number in the train split. Leave"),
    ],
)
def test_a_bad_number_is_one_error(tmp_path, changes, wanted):
    changes = {
        name: [None if cell is None else str(cell) for cell in column]
        for name, column in changes.items()
    }
    assert wanted in error_of(tmp_path, *GIVEN, **changes)


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ("age,hime", "--numbers 'hime' is not a column; did you mean 'time'?"),
        ("age,,time", "--numbers has an empty column. Give columns such as age,height"),
        ("age,age", "--numbers names 'age' twice. Give each column once"),
    ],
)
def test_wrong_columns_are_one_error(tmp_path, numbers, wanted):
    assert wanted in error_of(tmp_path, "--numbers", numbers, "--label", "label")


def test_constant_and_telling_numbers_are_reported(tmp_path, capsys):
    score = [0.1 + (label == "yes") for label in LABEL]
    run(
        tmp_path,
        "--numbers",
        "age,score",
        "--label",
        "label",
        source=table_of(tmp_path, age=[4.5] * ROWS, score=score),
    )
    printed = capsys.readouterr().out
    assert "warning: column 'age' of --numbers is 4.5 in all train rows that have it" in printed
    assert "column 'score' determines label label: it may be made of the label. If it is" in printed


def test_statistics_are_exact():
    """Over blocks of rows. A constant column, or one without numbers, has the deviation 1."""
    rng = np.random.default_rng(0)
    numbers = rng.normal((3, 1e9, 0.1, 0), (2, 1e-3, 0, 0), (150_000, 4))
    numbers[rng.random(numbers.shape) < 0.3] = np.nan
    numbers[:, 3] = np.nan
    found = number_statistics(numbers)
    for column in range(3):
        known = numbers[~np.isnan(numbers[:, column]), column].tolist()
        mean = math.fsum(known) / len(known)
        assert found.mean[column] == pytest.approx(mean, rel=1e-15)
        squares = math.fsum((number - mean) ** 2 for number in known)
        if column < 2:
            assert found.std[column] == pytest.approx(math.sqrt(squares / len(known)), rel=1e-6)
    assert found.std[2:] == (1, 1)
    assert found.mean[3] == 0


def test_the_guess_has_the_numeric_columns(tmp_path, capsys):
    """Not ids, counters, constants, codes, labels, or what determines the label."""
    more = {
        "patient_id": [number * 7 for number in range(ROWS)],
        "line": list(range(100, 100 + ROWS)),
        "always": [1] * ROWS,
        "zone": [f"{number % 9:03}" for number in range(ROWS)],
        "score": [number + 100 * (label == "yes") for number, label in enumerate(LABEL)],
        "free": [f"{number % 11},5" for number in range(ROWS)],
    }
    with pytest.raises(SystemExit):
        pack.main(args=["table", "--source", str(table_of(tmp_path, **more))])
    shown = capsys.readouterr().out
    assert "--numbers age,free --label label=label" in shown or "--numbers age,time,free" in shown
