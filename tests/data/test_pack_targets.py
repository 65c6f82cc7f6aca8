"""`furnace pack table` with regression and ordinal labels."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from table_files import sentence

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader

ROWS = 40
VALENCE = [math.sin(number) * 3 for number in range(ROWS)]
PRICE = [1e9 + 1000.25 * number for number in range(ROWS)]
RISK = [("low", "medium", "high")[number % 3] for number in range(ROWS)]
STARS = [(1, 2, 10)[number % 3] for number in range(ROWS)]
TARGETS = ("--label", "mood=valence,price:regression")


def table_of(tmp_path, **changes):
    path = tmp_path / "mine.csv"
    columns = {"text": [sentence(number, "x") for number in range(ROWS)]}
    columns |= {"valence": VALENCE, "price": PRICE, "risk": RISK, "stars": STARS}
    pl.DataFrame(columns | changes).write_csv(path)
    return path


def run(tmp_path, *arguments, source=None):
    out = tmp_path / "packed"
    pack.main(
        args=[
            *("table", "--source", str(source or table_of(tmp_path)), "--text", "text"),
            *("--split", "60/20/20", "--workers", "1", "--out", str(out), *map(str, arguments)),
        ],
        standalone_mode=False,
    )
    return open_columns(out)


def error_of(tmp_path, *arguments, **changes) -> str:
    with pytest.raises(ConfigError) as raised:
        run(tmp_path, *arguments, source=table_of(tmp_path, **changes))
    assert not (tmp_path / "packed").exists()
    return str(raised.value)


def number_of(columns, split):
    """The row of the table of each sample, from 0."""
    return [int(name) - 1 for name in columns.split(split)["source_id"]]


def test_targets_are_stored_as_given(tmp_path, capsys):
    """They are fp64, and the manifest has mean and deviation of the train split."""
    columns = run(tmp_path, *TARGETS, "--verify")
    manifest = columns.manifest
    assert manifest.labels["mood"].kind == "regression"
    assert manifest.labels["mood"].classes == ("valence", "price")
    for split in manifest.splits:
        rows = number_of(columns, split)
        expected = np.stack([np.array(VALENCE)[rows], np.array(PRICE)[rows]], axis=1)
        assert columns.split(split)["label.mood"].tolist() == expected.tolist()
    train = columns.split("train")["label.mood"]
    statistics = manifest.statistics["label.mood"]
    assert statistics.mean == pytest.approx(train.mean(0), rel=1e-15)
    assert statistics.std == pytest.approx(train.std(0), rel=1e-12)
    printed = capsys.readouterr().out
    assert "label mood: regression" in printed
    assert f"valence (train): mean {train[:, 0].mean():.4g}, deviation" in printed
    page = (tmp_path / "packed/profile.html").read_text()
    assert f"<td>valence<td>train<td class=n>24<td class=n>{train[:, 0].mean():.4g}" in page


def test_batches_have_standardised_targets(tmp_path):
    columns = run(tmp_path, *TARGETS)
    reader = BatchReader(columns, "train", ("text",), ("mood",), torch.device("cpu"))
    labels = reader.read(np.arange(24)).labels["mood"]
    assert labels.shape == (24, 2)
    assert labels.dtype == torch.float32
    assert labels.mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert labels.std(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-6)
    back = reader.target_scales["mood"].original(labels)
    stored = columns.split("train")["label.mood"]
    assert np.abs(back.numpy() - stored).max(0) == pytest.approx([0, 0], abs=1e-3)


def test_decimal_commas_are_numbers(tmp_path):
    text = [f"{value:.2f}".replace(".", ",") for value in VALENCE]
    columns = run(
        tmp_path, "--label", "valence:regression", source=table_of(tmp_path, valence=text)
    )
    rows = number_of(columns, "test")
    found = columns.split("test")["label.valence"][:, 0].tolist()
    assert found == [float(f"{VALENCE[row]:.2f}") for row in rows]


def test_ordinal_levels_have_an_order(tmp_path):
    """Numbers ascend by value, and names have the order that is given."""
    levels = ("--label", "risk:ordinal", "--levels", "risk=low,medium,high,extreme")
    columns = run(tmp_path, "--label", "stars:ordinal", *levels)
    labels = columns.manifest.labels
    assert labels["stars"].kind == labels["risk"].kind == "ordinal"
    assert labels["stars"].classes == ("1", "2", "10")
    assert labels["risk"].classes == ("low", "medium", "high", "extreme")
    rows = number_of(columns, "train")
    assert columns.split("train")["label.risk"].tolist() == [row % 3 for row in rows]
    assert columns.split("train")["label.stars"].tolist() == [row % 3 for row in rows]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, "1 of 40 rows have no value, first row 6. Fill them in, or leave them out"),
        ("nan", "1 of 40 rows have no value, first row 6. Fill them in, or leave them out"),
        ("inf", "row 6 has no finite number in column 'valence' (rows like it: 1)"),
        ("many", "row 6 has no finite number in column 'valence' (rows like it: 1)"),
    ],
)
def test_a_bad_target_is_one_error(tmp_path, value, wanted):
    cells = [str(number) for number in VALENCE]
    cells[5] = value
    message = error_of(tmp_path, *TARGETS, "--max-refused", 0, valence=cells)
    assert wanted in message
    assert message.startswith("--label mood=valence,price:regression: ")


def test_nan_in_parquet_is_a_missing_value(tmp_path):
    path = tmp_path / "mine.parquet"
    frame = pl.read_csv(table_of(tmp_path))
    frame = frame.with_columns(pl.Series("valence", [math.nan, *VALENCE[1:]]))
    frame.write_parquet(path)
    with pytest.raises(ConfigError, match="1 of 40 rows have no value, first row 1"):
        run(tmp_path, *TARGETS, "--max-refused", 0, source=path)
    columns = run(tmp_path, *TARGETS, "--max-refused", "0.1", source=path)
    assert sum(columns.manifest.splits.values()) == ROWS - 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--label", "risk:ordinal"), "the level 'high' is not a number, so the order is unknown"),
        (
            ("--label", "risk:ordinal", "--levels", "risk=low,hihg,medium"),
            "'high'; did you mean 'hihg'?",
        ),
        (("--label", "stars", "--levels", "stars=1,2,10"), "--levels stars=... is not an ordinal"),
        (("--label", "stars:ordinal", "--levels", "stars=1"), "--levels 'stars=1' is not a list"),
        (("--label", "price,price:regression"), "has an empty or a repeated column"),
        (("--label", "m=valence,prize:regression"), "'prize' is not a column; did you mean"),
        ((*TARGETS, "--stratify", "mood"), "--stratify 'mood' has numbers"),
    ],
)
def test_wrong_options_are_one_error(tmp_path, arguments, wanted):
    assert wanted in error_of(tmp_path, *arguments)


def test_a_constant_target_is_an_error(tmp_path):
    message = error_of(tmp_path, *TARGETS, price=[2.5] * ROWS)
    assert "column 'price' is 2.5 in all train rows, so there is nothing to learn" in message
