"""`aggregate --from`: one clear error for files and options with a problem."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from aggregate_study import command
from foreign_runs import (
    BASE,
    BIG,
    table_of,
    values_of,
    wide_lines,
    write,
    write_csv,
    write_events,
)

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.metrics import foreign_direction
from furnace_hpc.tables.reading.foreign import runs as foreign_runs
from furnace_hpc.tables.reading.foreign.lines import MAX_LINE_BYTES

HEADER = "variant,seed,acc\n"
GOOD = HEADER + "base,0,0.8\nbig,0,0.9\n"


def error_of(path: Path, content: str | bytes, name: str = "runs.csv", **options) -> str:
    """The error for a file with this content, without the folder's name."""
    file = path / name
    if isinstance(content, str):
        content = content.encode()
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        table_of(file, **options)
    return str(caught.value).replace(f"{path}/", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "runs.csv: the file is empty."),
        ("\n\n", "runs.csv: no column variant or row."),
        (HEADER, "runs.csv: no runs, only a header."),
        (
            GOOD + 'big,1,"1,000"\n',
            "runs.csv:4: acc is '1,000', wanted a number. Write a decimal point, and no",
        ),
        (GOOD + "big,1,high\n", "runs.csv:4: acc is 'high', wanted a number. Correct it"),
        (GOOD + 'big,1,"0,9"\n', "runs.csv:4: acc is '0,9', wanted a number. Write a decimal"),
        (GOOD + "big,1,91%\n", "runs.csv:4: acc is '91%', wanted a number. Remove the percent"),
        (GOOD + "big,1,1_0\n", "runs.csv:4: acc is '1_0', wanted a number."),
        (GOOD + "big,1.5,0.9\n", "runs.csv:4: seed is '1.5', wanted a whole number."),
        (GOOD + "big,inf,0.9\n", "runs.csv:4: seed is 'inf', wanted a whole number."),
        (GOOD + "big,,0.9\n", "runs.csv:4: seed is empty."),
        (GOOD + ",1,0.9\n", "runs.csv:4: variant is empty."),
        (GOOD + "big,1\n", "runs.csv:4: the line has 2 fields, and the header has 3."),
        (GOOD + "big,0,0.7\n", "runs.csv:4: a second run of big, seed 0, after runs.csv:3."),
        (GOOD + 'big,1,"0.9\n', "runs.csv:4: not valid CSV: unexpected end of data."),
        (GOOD.encode() + b"b\xff,1,0.9\n", "runs.csv:4: not UTF-8 text."),
        (
            "variant,seed,acc,acc\nbase,0,1,2\n",
            "runs.csv:1: columns 3 and 4 have the name 'acc', wanted one column of this name. "
            "Rename or remove the others",
        ),
    ],
)
def test_a_bad_csv_file(tmp_path, content, expected):
    assert error_of(tmp_path, content).startswith(expected)


def test_the_line_counts_fields_with_line_breaks(tmp_path):
    content = 'variant,seed,acc,note\nbase,0,0.8,"two\nlines"\nbig,0,x,\n'
    assert error_of(tmp_path, content).startswith("runs.csv:4: acc is 'x'")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"row": "varian"}, "--row varian: the file has no such column; did you mean 'variant'?"),
        ({"seed": "sed"}, "--seed sed: the file has no such column; did you mean 'seed'?"),
        ({"metric": "ac"}, "--metric ac: the file has no such column; did you mean 'acc'?"),
        ({"pack": "set"}, "--pack set: the file has no such column; "),
        ({"value": "acc"}, "--value needs a column with the names of the metrics"),
        ({"reference": "bse"}, "--reference bse: no run has this row; did you mean 'base'?"),
        ({"direction": None}, "--metric acc: whether higher or lower is better is unknown."),
    ],
)
def test_a_bad_option(tmp_path, options, expected):
    assert expected in error_of(tmp_path, GOOD, **options)


def test_a_direction_that_contradicts_the_metric(tmp_path):
    content = GOOD.replace("acc", "accuracy")
    expected = "--direction min contradicts --metric accuracy: higher is better. Leave"
    assert expected in error_of(tmp_path, content, metric="accuracy", direction="min")


def test_alignment_of_other_tools_has_no_direction(tmp_path):
    """In Furnace it is a distance. Elsewhere it may be a score."""
    content = GOOD.replace("acc", "alignment")
    expected = "--metric alignment: whether higher or lower is better is unknown."
    assert expected in error_of(tmp_path, content, metric="alignment", direction=None)
    assert foreign_direction("test/consistency/alignment@text+image") == "min"


def test_no_usual_reference(tmp_path):
    expected = "is unknown. Add --reference ROW; valid: big, ours"
    assert expected in error_of(tmp_path, GOOD.replace("base", "ours"), row="variant")


def test_unknown_metric_of_a_long_file(tmp_path):
    content = "variant,seed,metric,value\nbase,0,accuracy,0.8\n"
    assert "did you mean 'accuracy'?" in error_of(tmp_path, content, metric="acuracy")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"variant": "base"\n', "runs.jsonl:1: not valid JSON: "),
        ("\n[1, 2]\n", "runs.jsonl:2: got [1, 2], wanted a JSON object."),
        ('{"variant": "a", "seed": 0, "acc": true}', "runs.jsonl:1: acc is 'True', wanted a n"),
        ('{"variant": "a", "seed": 0, "acc": [1]}', "runs.jsonl:1: acc is '[1]', wanted a n"),
        ('{"a.b": 1, "a": {"b": 2}}', "runs.jsonl:1: two values have the name 'a.b', wanted one."),
        ("[" * 5000, "runs.jsonl:1: not valid JSON: "),
    ],
)
def test_a_bad_json_file(tmp_path, content, expected):
    assert error_of(tmp_path, content, "runs.jsonl").startswith(expected)


def test_every_damage_of_a_parquet_file_is_an_error(tmp_path):
    """Each cut gives an error. Changed bytes may change a value, and never give a traceback."""
    whole = write("parquet", tmp_path, wide_lines()).read_bytes()
    damaged = [whole[:length] for length in range(1, len(whole), 97)]
    damaged += [whole[:at] + b"\xff\x7f" + whole[at + 2 :] for at in range(0, len(whole), 61)]
    errors = []
    for content in damaged:
        (tmp_path / "bad.parquet").write_bytes(content)
        with suppress(ConfigError):
            table_of(tmp_path / "bad.parquet")
            continue
        errors.append(content)
    assert {whole[:length] for length in range(1, len(whole), 97)} <= {*errors}


def test_the_row_of_a_parquet_file_is_named(tmp_path):
    lines = [line | {"acc": str(line["acc"])} for line in wide_lines()]
    lines[3]["acc"] = "bad"
    path = tmp_path / "runs.parquet"
    pl.DataFrame(lines).write_parquet(path)
    with pytest.raises(ConfigError, match="runs.parquet: row 4: acc is 'bad', wanted a number"):
        table_of(path)


def test_other_suffixes_and_missing_files(tmp_path):
    assert "the suffix '.xlsx' is unknown" in error_of(tmp_path, "x", "runs.xlsx")
    with pytest.raises(ConfigError, match="No such file or directory"):
        table_of(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="the folder has no event files"):
        table_of(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ConfigError, match="is a named pipe, not a regular file"):
        table_of(tmp_path / "pipe.csv")


def test_event_files_without_tensorboard(tmp_path, monkeypatch):
    write_events(tmp_path)
    monkeypatch.setattr("furnace_hpc.tables.reading.foreign.tensorboard.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install tensorboard`, or give the CSV files"):
        table_of(tmp_path)


@pytest.mark.parametrize("option", ["row", "seed", "pack", "data_set"])
def test_event_files_have_no_columns(tmp_path, option):
    write_events(tmp_path)
    with pytest.raises(ConfigError) as caught:
        table_of(tmp_path, **{option: "variant"})
    assert str(caught.value).endswith(
        f"event files have no columns for --{option.replace('_', '-')}. Leave that out and name "
        f"the folder of a run as base-seed3, or give a CSV file with these columns"
    )


def test_two_meanings_of_a_pack(tmp_path):
    with pytest.raises(ConfigError, match="--pack and --data-set were given. Give --pack if"):
        table_of(tmp_path, pack="pack", data_set="pack")


def test_a_downloaded_scalar_has_one_value_column(tmp_path):
    text = "Wall time,Step,Value\n1.7e9,0,0.1\n"
    error = error_of(tmp_path, text, "base_seed0.csv", value="loss")
    assert "--value loss: the file has no such column" in error


@pytest.mark.parametrize("same_steps", [True, False])
def test_two_histories_of_one_name_are_refused(tmp_path, same_steps):
    """W&B allows several runs of one name. Their steps would become one run."""
    steps = [(0, 0.1), (10, 0.5), (20, 0.9), (0, 0.2), (10, 0.3)]
    if not same_steps:
        steps = [(0, 0.1), (20, 0.9), (5, 0.3)]
    lines = [{"run": "base-seed0", "_step": step, "acc": value} for step, value in steps]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    error = error_of(tmp_path, text, "histories.jsonl")
    number, last = (4, 0) if same_steps else (3, 5)
    assert error == (
        f"histories.jsonl:{number}: step {last} of base, seed 0 comes after step 20 "
        f"(histories.jsonl:{number - 1}), so these may be two runs of one name. Rename one, or "
        f"export a file per run. If it is one run, sort its lines by step"
    )


def test_histories_of_several_runs_in_one_file(tmp_path):
    """The lines of the runs may alternate."""
    path = tmp_path / "histories.jsonl"
    lines = [
        {"run": f"{line['variant']}-seed{line['seed']}", "_step": step, "acc": step * line["acc"]}
        for step in (0, 1)
        for line in wide_lines()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert values_of(table_of(path)) == {"base": BASE, "big": BIG}


def test_run_names_without_a_seed(tmp_path):
    text = "Name,State,acc\njolly-haze-4,finished,0.9\n"
    assert error_of(tmp_path, text).startswith(
        "runs.csv:2: the run name 'jolly-haze-4' does not end in a seed (example: base-seed3). "
        "Name the columns with --row and --seed"
    )


def test_metric_that_no_history_has(tmp_path):
    text = '{"_step": 1, "loss": 0.5}\n'
    assert "--metric los: no run has this metric; did you mean 'loss'?" in error_of(
        tmp_path, text, "base-s0.jsonl", metric="los"
    )


def test_one_run_in_two_files(tmp_path):
    lines = wide_lines()
    first, second = (write_csv(tmp_path / f"{name}.csv", lines) for name in "ab")
    with pytest.raises(ConfigError, match=r"b\.csv:2: a second run of base, seed 0, after .*a\.c"):
        table_of(first, second)


def test_a_line_without_an_end(tmp_path):
    content = HEADER + "x" * (MAX_LINE_BYTES + 1)
    assert error_of(tmp_path, content).startswith("runs.csv:2: the line has more than 1,000,000 ")


def test_more_runs_than_a_table_has(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_runs, "MAX_RUNS", 1)
    assert error_of(tmp_path, GOOD).startswith("runs.csv:3: more than 1 runs.")


def test_a_huge_history_needs_little_memory(tmp_path):
    """A file of 50 MB adds less than 20 MB to the memory of the imports."""
    path = tmp_path / "base-seed0.jsonl"
    line = '{"_step": %d, "loss": 0.5, "acc": 0.25, "note": "' + "x" * 400 + '"}\n'
    with path.open("w") as file:
        file.writelines(line % step for step in range(120_000))
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from furnace_hpc.tables.reading.foreign.columns import Query\n"
        "from furnace_hpc.tables.reading.foreign.runs import read_foreign\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "found = read_foreign([Path(sys.argv[1])], Query('acc'))\n"
        "print(len(found.runs), peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    num_runs, grown_kib = map(int, done.stdout.split())
    assert num_runs == 1
    assert path.stat().st_size > 50e6
    assert grown_kib < 20_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no runs given. Give --grid NAME, or --from FILE for another tool's runs"),
        (["--grid", "x", "--row", "y"], "--row needs --from. Give the file, or remove it"),
        (["--from", "r.csv"], "--from needs --metric. Name the column with the values to compare"),
        (["--from", "r.csv", "--metric", "a", "--by", "b"], "--by is not possible with --from."),
    ],
)
def test_options_that_do_not_belong_together(tmp_path, words, expected):
    done = command(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert not (tmp_path / "results").exists()
