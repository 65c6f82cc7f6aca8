"""Sentences of a table in unusual situations: each must follow from its runs."""

import pytest
from foreign_runs import table_of, wide_lines, write_csv

from furnace_hpc.tables.output.captions import caption, main_sentences, short_caption
from furnace_hpc.tables.output.cells import all_cells, headings
from furnace_hpc.tables.output.verdict import verdict, verdict_sentences
from furnace_hpc.tables.text import DASH


def all_sentences(ablation) -> str:
    return " ".join([*main_sentences(ablation), *caption(ablation, headings(ablation))])


def notes_of(ablation) -> str:
    return " ".join(note.text for note in ablation.notes)


def lines_on(*packs: str, seeds: int = 4) -> list[dict]:
    return [
        {**line, "data": pack, "acc": line["acc"] + 0.01 * number * (1 + line["seed"])}
        for number, pack in enumerate(packs)
        for line in wide_lines()
        if line["seed"] < seeds
    ]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("pack", "All runs have one pack (--pack): the table says nothing about other data."),
        ("data_set", "All runs have one data set (--data-set): the table says nothing about"),
    ],
)
def test_a_column_with_one_pack_is_not_denied(tmp_path, option, expected):
    """The caption said that neither option was given."""
    path = write_csv(tmp_path / "runs.csv", lines_on("a"))
    text = all_sentences(table_of(path, **{option: "data"}))
    assert expected in text
    assert "Neither --pack" not in text
    assert "Neither --pack nor --data-set is given" in all_sentences(table_of(path))


def test_one_seed_per_pack_has_no_spread_over_seeds(tmp_path):
    path = write_csv(tmp_path / "runs.csv", lines_on("a", "b", "c", seeds=1))
    ablation = table_of(path, pack="data")
    assert "standard deviation over packs, n = 3 runs" in short_caption(ablation)
    assert "± (seeds)" not in all_sentences(ablation)
    several = table_of(write_csv(tmp_path / "more.csv", lines_on("a", "b", "c")), pack="data")
    assert "over seeds and over packs" in short_caption(several)
    assert "± (seeds)" in all_sentences(several)


def test_the_mean_of_a_row_without_a_pack_is_explained(tmp_path):
    """The caption said `mean over 3 packs` of a row with runs on two packs."""
    sentence = "The mean of a row that lacks runs is over the packs and seeds that it has."
    lines = lines_on("a", "b", "c")
    whole = table_of(write_csv(tmp_path / "whole.csv", lines), pack="data")
    assert sentence not in all_sentences(whole)
    lines = [line for line in lines if (line["variant"], line["data"]) != ("big", "c")]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), pack="data")
    assert sentence in all_sentences(ablation)


def test_one_row_has_no_sentence_on_differences(tmp_path):
    lines = [line for line in wide_lines() if line["variant"] == "base"]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    text = all_sentences(ablation)
    assert "ifference to base" not in text
    assert "undecided" not in text
    assert verdict(ablation) == "one row, nothing to compare"


def test_the_interval_of_one_row_is_not_stricter(tmp_path):
    """With one comparison, Holm's p and the interval have the same level."""
    lines = wide_lines()
    one = table_of(write_csv(tmp_path / "one.csv", lines))
    assert "Verdicts follow the interval and need all runs." in all_sentences(one)
    lines += [line | {"variant": "other"} for line in wide_lines() if line["variant"] == "big"]
    two = table_of(write_csv(tmp_path / "two.csv", lines))
    assert "Verdicts follow the interval, which is stricter, and need" in all_sentences(two)


@pytest.mark.parametrize(("row", "where"), [("big", ""), ("base", " in base")])
def test_no_run_is_better_if_all_failed(tmp_path, row, where):
    """The report said that the rest may be the better runs. There was no rest."""
    lines = [line | {"acc": "nan"} if line["variant"] == row else line for line in wide_lines()]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    ((_, sentence),) = verdict_sentences(ablation)
    assert sentence == f"big against base is undecided: 4 of 4 failed{where}."


def test_rounding_is_no_difference(tmp_path):
    """0.1 + 0.2 minus 0.3 was shown as +0.000000000000000."""
    values = {"base": 0.1 + 0.2, "big": 0.3}
    lines = [line | {"acc": values[line["variant"]]} for line in wide_lines()]
    assert values["base"] != values["big"]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    assert all_cells(ablation)[1].difference == "+0.0000"
    lines = [line | {"acc": 1e-9 * (1 + (line["variant"] == "big"))} for line in lines]
    tiny = table_of(write_csv(tmp_path / "tiny.csv", lines))
    assert all_cells(tiny)[1].difference == "+0.0000000010"


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "auc"])
def test_shares_beside_percent_are_named(tmp_path, metric):
    """The row in percent was better by 83 than the row in shares."""
    lines = [
        {"variant": line["variant"], "seed": line["seed"]}
        | {metric: line["acc"] * (100 if line["variant"] == "big" else 1)}
        for line in wide_lines()
    ]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), metric=metric)
    (note,) = [note for note in ablation.notes if note.text.startswith("units may differ")]
    assert note.variants == ("base",)
    assert f"{metric} has values above 1, and values from 0 to 1 in base 4 of 4 runs" in note.text


@pytest.mark.parametrize(("metric", "factor"), [("accuracy", 1), ("accuracy", 100), ("loss", 1.2)])
def test_values_of_one_unit_have_no_note(tmp_path, metric, factor):
    lines = [
        {"variant": line["variant"], "seed": line["seed"], metric: factor * line["acc"]}
        for line in wide_lines()
    ]
    lines[0][metric] = 0
    path = write_csv(tmp_path / "runs.csv", lines)
    assert "units may differ" not in notes_of(table_of(path, metric=metric, direction=None))


def test_all_data_sets_without_a_value_are_named(tmp_path):
    lines = lines_on("a", "b", "c")
    lines += [line | {"variant": "third"} for line in lines if line["variant"] == "big"]
    gaps = {("big", "b"), ("big", "c"), ("third", "a")}
    lines = [line for line in lines if (line["variant"], line["data"]) not in gaps]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), data_set="data")
    expected = "no ranks over 3 data sets: big lacks a value on b, c; third lacks a value on a"
    assert expected in notes_of(ablation)


def test_failed_runs_are_not_in_further_metrics(tmp_path):
    """A run without the first metric counts as failed, so its other values do not count."""
    lines = wide_lines()
    lines[5]["acc"] = ""
    path = write_csv(tmp_path / "runs.csv", lines)
    ablation = table_of(path, more_metrics=("loss",))
    assert [table.rows[1].n for table in ablation.others] == [3]
    expected = "loss: mean ± sample standard deviation over finished runs that have a value."
    assert expected in all_sentences(ablation)


def test_a_missing_exact_p_is_explained(tmp_path):
    lines = [
        {"variant": row, "seed": seed, "acc": gain + 0.01 * (seed * (3 + 4 * gain) % 7)}
        for row, gain in (("base", 0), ("big", 1))
        for seed in range(33)
    ]
    many = table_of(write_csv(tmp_path / "many.csv", lines))
    assert all_cells(many)[1].sign_flip_p == DASH
    assert "p (flip) is not computed for more than 32 pairs." in all_sentences(many)
    few = table_of(write_csv(tmp_path / "few.csv", [x for x in lines if x["seed"] < 32]))
    assert "is not computed" not in all_sentences(few)


def test_the_caption_names_ranks_only_if_known(tmp_path):
    """The caption of a table with two rows compared its intervals with ranks."""
    lines = lines_on("a", "b", "c")
    two = table_of(write_csv(tmp_path / "two.csv", lines), data_set="data")
    assert "They need values on one scale." in all_sentences(two)
    lines += [line | {"variant": "third"} for line in lines if line["variant"] == "big"]
    three = table_of(write_csv(tmp_path / "three.csv", lines), data_set="data")
    assert "on one scale, and ranks do not." in all_sentences(three)
