"""`aggregate --from`: runs of other tools give the same table as those of a grid."""

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from aggregate_study import command
from foreign_runs import (
    BASE,
    BIG,
    long_lines,
    table_of,
    values_of,
    wide_lines,
    write,
    write_csv,
    write_events,
    write_json_lines,
)
from scipy import stats

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.tables.output.captions import caption, main_sentences, short_caption
from furnace_hpc.tables.output.cells import format_changes, headings
from furnace_hpc.tables.output.results import WRITERS
from furnace_hpc.tables.reading.foreign.formats import split_run_name

COST_COLUMNS = {"train_s", "wall_s", "attempts", "lost_steps", "hours", "goodput", "num_parameters"}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("lines", [wide_lines(), long_lines()], ids=["wide", "long"])
def test_each_format_gives_the_same_numbers(tmp_path, kind, lines):
    ablation = table_of(write(kind, tmp_path, lines))
    assert values_of(ablation) == {"base": BASE, "big": BIG}
    difference = ablation.rows[1].difference
    expected = stats.ttest_rel(BIG, BASE)
    low, high = expected.confidence_interval()
    assert difference.t_p == pytest.approx(expected.pvalue, rel=1e-9)
    assert difference.interval == pytest.approx((low, high), rel=1e-9)
    assert ablation.grid.reference == "base"


def test_value_names_the_column_of_a_long_file(tmp_path):
    lines = [line | {"result": line.pop("value")} for line in long_lines()]
    path = write_csv(tmp_path / "runs.csv", lines)
    ablation = table_of(path, metric="loss", value="result", direction=None)
    assert values_of(ablation)["big"] == [line["loss"] for line in wide_lines()[4:]]
    assert ablation.metric.direction == "min"


def test_semicolons_byte_order_mark_and_blank_lines(tmp_path):
    path = write_csv(tmp_path / "runs.csv", wide_lines(), ";")
    path.write_text("\ufeff" + path.read_text() + "\n\n", encoding="utf-8")
    assert values_of(table_of(path)) == {"base": BASE, "big": BIG}


def test_numbers_keep_all_their_digits(tmp_path):
    lines = [line | {"acc": line["acc"] + 1e-16} for line in wide_lines()]
    path = write("parquet", tmp_path, lines)
    assert values_of(table_of(path))["base"] == [line["acc"] for line in lines[:4]]


def test_packs_pair_runs_and_are_counted(tmp_path):
    lines = [
        {**line, "data": f"set{pack}", "acc": line["acc"] + 0.01 * pack + 0.001 * pack * seed}
        for pack in range(3)
        for seed, line in enumerate(wide_lines())
    ]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), pack="data")
    assert ablation.packs == ("set0", "set1", "set2")
    assert ablation.rows[1].difference.n == 3
    assert "mean over 3 packs" in " ".join(caption(ablation, headings(ablation)))


@pytest.mark.parametrize("empty", ["", "NaN", "nan", "null", "N/A"])
def test_a_failed_run_is_missing_and_named(tmp_path, empty):
    lines = wide_lines()
    lines[6]["acc"] = empty
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines))
    assert [run.run_id for run in ablation.missing] == ["big-s2"]
    assert (ablation.rows[1].n, ablation.rows[1].n_expected) == (3, 4)
    text = "\n".join(note.text for note in ablation.notes)
    assert f"missing: big-s2 (failed: acc is {empty or 'empty'}, {tmp_path}/runs.csv:8)" in text


def test_nan_in_parquet_and_null_in_json_are_missing(tmp_path):
    lines = wide_lines()
    lines[6]["acc"] = float("nan")
    parquet = write("parquet", tmp_path, lines)
    lines[6]["acc"] = None
    for path in (parquet, write("jsonl", tmp_path, lines)):
        assert [run.run_id for run in table_of(path).missing] == ["big-s2"]


def test_unknown_costs_are_left_out(tmp_path):
    ablation = table_of(write_csv(tmp_path / "runs.csv", wide_lines()))
    assert {*headings(ablation)} & {*COST_COLUMNS, "changes"} == set()
    texts = {name: make(ablation) for name, make in WRITERS.items()}
    for name in ("runs.csv", "table.csv"):
        assert {*next(csv.reader(texts[name].splitlines()))} & COST_COLUMNS == set()
    assert "goodput" not in texts["table.md"] + texts["table.tex"]
    data = texts["report.html"].partition('id="data">')[2].partition("</script>")[0]
    run = json.loads(data)["rows"][0]["runs"][0]
    assert (run["steps"], run["folder"]) == (None, f"{tmp_path}/runs.csv:2")
    sentences = caption(ablation, headings(ablation))
    assert "Read from runs.csv." in sentences
    assert not [sentence for sentence in sentences if sentence.startswith("Measured at")]


def test_accuracy_above_1_is_not_multiplied(tmp_path):
    lines = [{**line, "accuracy": 100 * line["acc"]} for line in wide_lines()]
    percent = write_csv(tmp_path / "runs.csv", lines)
    share = write_csv(tmp_path / "share.csv", [{**x, "accuracy": x["acc"]} for x in wide_lines()])
    assert table_of(percent, metric="accuracy").metric.scale.factor == 1
    assert table_of(share, metric="accuracy").metric.scale.factor == 100


def test_metric_with_an_at_sign_is_one_metric(tmp_path):
    lines = [{**line, "recall@5": line["acc"]} for line in wide_lines()]
    ablation = table_of(write_csv(tmp_path / "runs.csv", lines), metric="recall@5")
    assert "Subsets of the modalities" not in WRITERS["report.html"](ablation)


def test_mlflow_columns_states_and_settings(tmp_path):
    """The columns of `mlflow.search_runs().to_csv(...)`, whose first column is an index."""
    lines = []
    for number, line in enumerate(wide_lines()):
        lines.append(
            {
                "": number,
                "run_id": f"{number:032x}",
                "experiment_id": 0,
                "status": "FAILED" if number == 5 else "FINISHED",
                "metrics.acc": line["acc"],
                "params.variant": line["variant"],
                "params.seed": f"{line['seed']}.0",
                "params.lr": {"base": "0.1", "big": "0.3"}[line["variant"]],
                "params.note": number,
                "tags.mlflow.runName": f"gifted-owl-{number}",
            }
        )
    ablation = table_of(write_csv(tmp_path / "mlflow.csv", lines))
    assert ablation.source.tool == "MLflow"
    assert values_of(ablation) == {"base": BASE, "big": [BIG[0], *BIG[2:]]}
    assert "its state is FAILED" in ablation.missing[0].status.reason
    assert [(c.key, c.reference, c.value) for c in ablation.rows[1].changes] == [
        ("params.lr", 0.1, 0.3)
    ]
    assert "changes" in headings(ablation)
    text = "\n".join(note.text for note in ablation.notes)
    assert "settings differ between the runs of a row: params.note" in text


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        ("0.5", "0", "0 -> 0.5"),
        ("1e-3", "0.010", "0.01 -> 0.001"),
        ("-3", "12", "12 -> -3"),
        ("007", "7", '7 -> "007"'),  # not a number: it may be a name
        ("1e999", "nan", '"nan" -> "1e999"'),
        ("sgd", "adam", "adam -> sgd"),
    ],
)
def test_numbers_of_text_files_are_not_quoted(tmp_path, ours, theirs, shown):
    rate = {"base": theirs, "big": ours}
    lines = [
        {f"params.{key}": line[key] for key in ("variant", "seed")}
        | {"run_id": number, "metrics.acc": line["acc"], "params.lr": rate[line["variant"]]}
        for number, line in enumerate(wide_lines())
    ]
    ablation = table_of(write_csv(tmp_path / "mlflow.csv", lines))
    assert format_changes(ablation.rows[1]) == f"params.lr: {shown}"


def test_settings_that_look_like_secrets_are_left_out(tmp_path):
    lines = [
        {"run_id": number, "metrics.acc": line["acc"], "params.lr": line["variant"]}
        | {"tags.mlflow.runName": f"{line['variant']}-s{line['seed']}"}
        | {"params.api_key": f"wanted-by-{line['variant']}-0123456789"}
        for number, line in enumerate(wide_lines())
    ]
    ablation = table_of(write_csv(tmp_path / "mlflow.csv", lines))
    assert [change.key for change in ablation.rows[1].changes] == ["params.lr"]
    assert not [text for make in WRITERS.values() if "wanted-by" in (text := make(ablation))]


def test_mlflow_run_names_give_row_and_seed(tmp_path):
    lines = [
        {
            "run_id": number,
            "metrics.acc": line["acc"],
            "tags.mlflow.runName": f"{line['variant']}-seed{line['seed']}",
        }
        for number, line in enumerate(wide_lines())
    ]
    path = write_csv(tmp_path / "mlflow.csv", lines)
    assert values_of(table_of(path, metric="metrics.acc")) == {"base": BASE, "big": BIG}


def test_wandb_runs_table(tmp_path):
    """The export of the table of runs: metrics and config have no prefix."""
    lines = [
        {
            "Name": f"{line['variant']}_s{line['seed']}",
            "State": "crashed" if number == 7 else "finished",
            "Created": "2026-11-28T12:00:00.000Z",
            "Runtime": 61,
            "val/acc": line["acc"],
        }
        for number, line in enumerate(wide_lines())
    ]
    ablation = table_of(write_csv(tmp_path / "wandb_export.csv", lines), metric="val/acc")
    assert ablation.source.tool == "W&B"
    assert values_of(ablation) == {"base": BASE, "big": BIG[:3]}
    assert "its state is crashed" in ablation.missing[0].status.reason


@pytest.mark.parametrize("in_folders", [True, False])
def test_wandb_histories_count_the_last_step(tmp_path, in_folders):
    for line in wide_lines():
        name = f"{line['variant']}-seed{line['seed']}"
        path = tmp_path / f"{name}.jsonl"
        if in_folders:
            (tmp_path / name).mkdir()
            path = tmp_path / name / "wandb-history.jsonl"
        steps = [
            {"_step": 0, "_runtime": 1.0, "loss": 2.0},
            {"_step": 10, "_runtime": 2.0, "loss": 1.0, "val": {"acc": 0.1}},
            {"_step": 20, "_runtime": 3.0, "loss": 0.5, "val": {"acc": line["acc"]}},
            {"_step": 30, "_runtime": 4.0, "loss": 0.4},
        ]
        write_json_lines(path, steps)
    ablation = table_of(tmp_path, metric="val.acc")
    assert values_of(ablation) == {"base": BASE, "big": BIG}
    sentences = caption(ablation, headings(ablation))
    assert "The value of a run is its value at the last step that has one." in sentences


def test_history_that_ends_in_nan_is_a_failed_run(tmp_path):
    for line in wide_lines():
        steps = [{"_step": 1, "acc": line["acc"]}, {"_step": 2, "acc": line["acc"]}]
        if (line["variant"], line["seed"]) == ("big", 1):
            steps[1]["acc"] = float("nan")
        if (line["variant"], line["seed"]) == ("big", 2):
            steps = [{"_step": 1, "loss": 2.0}]
        write_json_lines(tmp_path / f"{line['variant']}-s{line['seed']}.jsonl", steps)
    ablation = table_of(tmp_path)
    assert [run.run_id for run in ablation.missing] == ["big-s1", "big-s2"]
    assert values_of(ablation)["big"] == [BIG[0], BIG[3]]


def test_tensorboard_downloads(tmp_path):
    """One file per run and tag, as the page of TensorBoard names them."""
    for line in wide_lines():
        for tag, value in (("test_acc", line["acc"]), ("loss", 0.3)):
            name = f"run-{line['variant']}_seed{line['seed']}-tag-{tag}.csv"
            rows = [(1.7e9, 0, 0.1), (1.7e9 + 1, 100, value), (1.7e9, 50, 0.2)]
            text = "".join(",".join(map(str, row)) + "\n" for row in rows)
            (tmp_path / name).write_text("Wall time,Step,Value\n" + text)
    ablation = table_of(tmp_path, metric="test/acc")
    assert ablation.source.tool == "TensorBoard"
    assert values_of(ablation) == {"base": BASE, "big": BIG}


def test_tensorboard_downloads_named_after_the_run(tmp_path):
    """The page "Time series" names a file after the run alone."""
    for line in wide_lines():
        text = f"Wall time,Step,Value\n1.7e9,0,0.1\n1.7e9,9,{line['acc']}\n"
        (tmp_path / f"{line['variant']}_seed{line['seed']}.csv").write_text(text)
    assert values_of(table_of(tmp_path)) == {"base": BASE, "big": BIG}


class StandInAccumulator:
    """The calls of tensorboard's EventAccumulator on files that hold JSON."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def Reload(self) -> "StandInAccumulator":
        self.values = json.loads(next(self.path.iterdir()).read_text())
        return self

    def Tags(self) -> dict[str, list[str]]:
        scalars = [tag for tag in self.values if not tag.startswith("tf2/")]
        return {"scalars": scalars, "tensors": list({*self.values} - {*scalars})}

    def Scalars(self, tag: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(wall_time=1.0, step=s, value=v) for s, v in self.values[tag]]


def test_event_files_are_read_by_tensorboard(tmp_path, monkeypatch):
    write_events(tmp_path)
    module = ModuleType("tensorboard.backend.event_processing.event_accumulator")
    module.EventAccumulator = StandInAccumulator
    for name in ("tensorboard", "tensorboard.backend", "tensorboard.backend.event_processing"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("furnace_hpc.tables.reading.foreign.tensorboard.find_spec", lambda _: True)
    assert values_of(table_of(tmp_path)) == {"base": BASE, "big": BIG}
    with pytest.raises(ConfigError, match="tf2/acc is a tensor, as TensorFlow 2 writes scalars"):
        table_of(tmp_path, metric="tf2/acc")


def test_run_names_need_the_word_seed():
    assert split_run_name("base-seed3") == ("base", 3)
    assert split_run_name("a/b_s12") == ("a/b", 12)
    assert split_run_name("big model/seed=4") == ("big model", 4)
    for name in ("jolly-haze-4", "base", "seed3", "bases3", ""):
        assert split_run_name(name) is None


def test_settings_that_vary_in_a_row_are_no_change(tmp_path):
    lines = [
        {**{f"params.{key}": line[key] for key in ("variant", "seed")}, "run_id": number}
        | {"metrics.acc": line["acc"], "params.note": number}
        for number, line in enumerate(wide_lines())
    ]
    ablation = table_of(write_csv(tmp_path / "mlflow.csv", lines))
    assert ablation.rows[1].changes == ()


def test_the_command_writes_all_files(tmp_path):
    write_csv(tmp_path / "runs.csv", wide_lines())
    words = ["--from", "runs.csv", "--row", "variant", "--seed", "seed", "--metric", "acc"]
    done = command(tmp_path, *words, "--direction", "max")
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "results" / "runs--acc"
    assert {path.name for path in out.iterdir()} == {*WRITERS, "figures", "source.json"}
    assert {path.name for path in (out / "figures").glob("*.svg")} >= {"means.svg"}
    assert not (out / "figures" / "cost.svg").exists()
    number = len(WRITERS) + 1 + len(list((out / "figures").iterdir()))
    assert f"wrote {number} files" in done.stdout


def test_the_caption_claims_only_what_files_say(tmp_path):
    """Each fold has one seed. Weights, orders and samples of another tool are unknown."""
    lines = [line | {"fold": f"f{line['seed']}"} for line in wide_lines()]
    write_csv(tmp_path / "runs.csv", lines)
    ablation = table_of(tmp_path / "runs.csv", pack="fold")
    text = " ".join(caption(ablation, headings(ablation)))
    assert "The value of a pack is the mean over 1 seed of the training. Seeds: 0, 1, 2, 3." in text
    assert "n = 4 runs, 1 seed on each of 4 packs" in short_caption(ablation)
    for claim in ("initial weights", "share its samples", "whole"):
        assert claim not in text
    warning = "The files do not say whether packs share samples"
    assert warning in " ".join(main_sentences(ablation))
    plain = table_of(tmp_path / "runs.csv")
    assert "same samples" not in " ".join(caption(plain, headings(plain)))


def test_files_of_one_name_keep_their_results(tmp_path):
    """The second table would overwrite the first one."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "runs.csv", wide_lines())
    words = ["--metric", "acc", "--direction", "max", "--no-figures"]
    out = tmp_path / "results" / "runs--acc"
    for _ in range(2):
        assert command(tmp_path, "--from", "a/runs.csv", *words).returncode == 0
    before = (out / "runs.csv").read_bytes()
    refused = command(tmp_path, "--from", "b/runs.csv", *words)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: results/runs--acc has the table of acc from {tmp_path.resolve()}/a/runs.csv. Give "
        f"another folder for this table with --out, or remove results/runs--acc\n"
    )
    assert (out / "runs.csv").read_bytes() == before
    assert command(tmp_path, "--from", "b/runs.csv", *words, "--out", "results/b").returncode == 0
    (out / "source.json").write_text("{")
    damaged = command(tmp_path, "--from", "a/runs.csv", *words)
    assert "source.json is damaged" in damaged.stderr


def test_a_missing_run_exits_1(tmp_path):
    lines = wide_lines()
    lines[0]["acc"] = ""
    write_csv(tmp_path / "runs.csv", lines)
    words = ["--from", "runs.csv", "--metric", "acc", "--direction", "max", "--no-figures"]
    done = command(tmp_path, *words, "--out", "tables")
    assert done.returncode == 1
    assert "1 of 8 runs is missing:\n  base-s0 (failed: acc is empty, runs.csv:2)" in done.stderr
    assert (tmp_path / "tables" / "table.md").exists()
