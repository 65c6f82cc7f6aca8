"""`furnace_hpc.results`: frames and the table in a notebook."""

import json
import re
import subprocess
import sys

import polars as pl
import pytest
from aggregate_study import submit
from foreign_runs import table_of, wide_lines, write_csv
from tables_study import finish, study

import furnace_hpc
from furnace_hpc.api import frames
from furnace_hpc.api.frames import Results
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.output.render import to_csv, to_runs_csv


@pytest.fixture
def results(tmp_path, monkeypatch) -> Results:
    """A submitted study of which one run is missing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FURNACE_RUNS", raising=False)
    grid, runs = study()
    folder = GridFolder(tmp_path / "runs" / "study")
    submit(grid, runs, folder)
    for spec in runs[1:]:
        finish(spec, folder)
    return furnace_hpc.results("study")


def test_the_frames_equal_the_csv_files(results):
    for frame, text in ((results.table, to_csv(results.ablation)), (results.runs, None)):
        content = pl.read_csv((text or to_runs_csv(results.ablation)).encode())
        assert frame.columns == content.columns
        assert frame.height == content.height
    assert results.table["variant"].to_list()[0] == "base"
    assert results.table["n"].to_list() == [4, 5, 5, 5]
    assert results.runs["test/digit/accuracy"].dtype == pl.Float64
    assert results.runs["test/digit/accuracy"].null_count() == 1
    means = results.runs.group_by("variant").agg(pl.col("test/digit/accuracy").mean())
    both = results.table.join(means, on="variant")
    assert both["mean"].to_list() == pytest.approx(both["test/digit/accuracy"].to_list())


def test_the_curves_have_every_logged_value(results):
    curves = results.curves
    assert curves.columns == ["run_id", "variant", "pack", "seed", "metric", "step", "value"]
    assert {*curves["metric"]} == {"val/digit/accuracy"}
    assert curves.height == 19 * 5
    first = curves.filter(pl.col("run_id") == curves["run_id"][0])
    assert first["step"].to_list() == [100, 200, 300, 400, 500]
    assert (first["variant"][0], first["seed"][0], first["value"].is_sorted()) == ("base", 1, True)


def test_a_notebook_shows_the_table(results):
    page = results._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") == 5
    assert "consistency_only" in page
    assert "4 of 5" in page
    assert "missing: base-s0" in page
    assert "<strong>" in page
    numbers = re.findall(r"<td ([^>]*)>[^<]* \[", page)  # differences with intervals
    assert numbers
    assert all("white-space:nowrap" in style for style in numbers)
    shown, _, folded = page.partition("<details><summary>How to read this table</summary>")
    assert "n = 4 to 5 seeds" in shown
    assert "Measured at" not in shown
    assert "Measured at" in folded
    expected = "<results of study: test/digit/accuracy, 4 rows, 20 runs, 1 of them missing>"
    assert repr(results) == expected


@pytest.mark.parametrize(
    ("installed", "missing"),
    [((), "pandas and pyarrow are"), (("pandas",), "pyarrow is"), (("pyarrow",), "pandas is")],
)
def test_to_pandas_names_what_is_not_installed(results, monkeypatch, installed, missing):
    monkeypatch.setattr(frames, "find_spec", lambda name: name in installed or None)
    with pytest.raises(ConfigError) as caught:
        results.to_pandas("runs")
    assert str(caught.value) == (
        f"to_pandas needs pandas and pyarrow, and {missing} not installed. "
        f"Run pip install pandas pyarrow"
    )
    with pytest.raises(ConfigError, match="no frame 'run'; did you mean 'runs'"):
        results.to_pandas("run")


def test_to_pandas_keeps_the_values(results):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for name in frames.FRAMES:
        found, expected = results.to_pandas(name), getattr(results, name)
        assert list(found.columns) == expected.columns
        assert len(found) == expected.height
    values = results.to_pandas("runs")["test/digit/accuracy"]
    assert values.isna().sum() == 1
    assert values.dtype == "float64"


def test_to_pandas_is_that_of_polars(results, monkeypatch):
    """Without the two packages installed: polars does the conversion of the right frame."""
    monkeypatch.setattr(frames, "find_spec", lambda _: True)
    monkeypatch.setattr(pl.DataFrame, "to_pandas", lambda frame: list(frame.columns))
    for name in frames.FRAMES:
        assert results.to_pandas(name) == getattr(results, name).columns


def test_names_of_rows_are_escaped_in_a_notebook(tmp_path):
    lines = wide_lines()
    for line in lines[4:]:
        line["variant"] = "<script>alert(1)</script>"
    foreign = Results(table_of(write_csv(tmp_path / "runs.csv", lines)))
    assert "<script" not in foreign._repr_html_()
    assert foreign.curves.is_empty()
    assert "origin" in foreign.runs.columns


def test_views_of_the_results(results):
    chosen = furnace_hpc.results("study", where=["variant=base", "variant=full"])
    assert chosen.table["variant"].to_list() == ["base", "full"]
    loss = furnace_hpc.results("study", metric="test/digit/loss")
    assert loss.ablation.metric.direction == "min"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("studi", {}, "unknown grid 'studi' in the folder of runs runs; did you mean 'study'?"),
        ("study", {"runs_dir": "other"}, "unknown grid 'study' in the folder of runs other; "),
        ("none.yaml", {}, "grid 'none.yaml': there is no such file."),
        ("study", {"where": "variant=base"}, "where is 'variant=base', wanted a list. Write ["),
        ("study", {"metric": "test/digit/acuracy"}, "did you mean 'test/digit/accuracy'?"),
        ("smoke", {}, "grid 'smoke' has no runs under runs."),
    ],
)
def test_a_wrong_argument(results, name, options, expected):
    with pytest.raises(ConfigError) as caught:
        furnace_hpc.results(name, **options)
    assert expected in str(caught.value)


def test_importing_the_package_loads_nothing():
    code = "import sys, json; import furnace_hpc; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [name for name in json.loads(done.stdout) if name.startswith("furnace_hpc")]
    assert ours == ["furnace_hpc"]
    assert "polars" not in done.stdout
    assert "pydantic" not in done.stdout
