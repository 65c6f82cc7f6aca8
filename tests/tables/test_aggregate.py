"""The aggregate command: input, files, output and exit codes."""

from pathlib import Path

import pytest
import yaml
from aggregate_study import command, submit
from tables_study import FINGERPRINT, GRID, fail, finish, study

from furnace_hpc.aggregate import show_table
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.tables.reading.submitted import submitted_grid, submitted_runs

TABLES = ["effects.csv", "report.html", "runs.csv", "table.csv", "table.md", "table.tex"]
FIGURES = [
    f"figures/{name}.{form}"
    for name in ("cost", "curves", "differences", "means")
    for form in ("png", "svg")
]


def written(folder: Path) -> dict[str, bytes]:
    """Name below `folder` -> content of every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_complete_grid_exits_0_and_writes_every_file(tmp_path):
    grid, runs = study()
    submit(grid, runs, GridFolder(tmp_path / "runs" / "study"))
    for spec in runs:
        finish(spec, GridFolder(tmp_path / "runs" / "study"))
    done = command(tmp_path, "--grid", "study")
    assert (done.returncode, done.stderr) == (0, "")
    results = tmp_path / "results" / "study"
    first = written(results)
    assert sorted(first) == sorted(FIGURES + TABLES)
    assert (
        f"wrote {len(first)} files to results/study; open results/study/report.html\nnext: "
        in done.stdout
    )
    assert "consistency_only" in done.stdout
    assert command(tmp_path, "--grid", "study").returncode == 0
    assert written(results) == first


def test_missing_runs_are_listed_on_stderr(tmp_path):
    """The exit code is 1, and each missing run has its state and reason."""
    grid, runs = study()
    folder = GridFolder(tmp_path / "elsewhere" / "study")
    submit(grid, runs, folder)
    for spec in runs[2:]:
        finish(spec, folder)
    fail(runs[1], folder, "ValueError: no such column")
    arguments = ["--grid", "study", "--runs-root", "elsewhere", "--out", "tables", "--no-figures"]
    done = command(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "2 of 20 runs are missing:",
        f"  {runs[0].run_id} (new)",
        f"  {runs[1].run_id} (failed: ValueError: no such column)",
    ]
    assert "3 of 5" in done.stdout
    assert sorted(written(tmp_path / "tables")) == TABLES


def test_a_grid_without_runs_names_the_command(tmp_path):
    """The exit code is 2."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(GRID))
    done = command(tmp_path, "--grid", "study.yaml", "--runs-root", "nowhere")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "grid 'study' has no runs under nowhere. Submit it with" in done.stderr
    assert "furnace submit --grid study.yaml --runs-root nowhere`" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_grid_exits_2_with_the_nearest_name(tmp_path):
    done = command(tmp_path, "--grid", "ablatoin")
    assert done.returncode == 2
    assert "did you mean 'ablation'" in done.stderr


def test_unknown_metric_lists_the_known_ones(tmp_path):
    """The exit code is 2."""
    grid, runs = study(metric="test/digit/f1_macro")
    folder = GridFolder(tmp_path / "runs" / "study")
    submit(grid, runs, folder)
    finish(runs[0], folder)
    done = command(tmp_path, "--grid", "study")
    assert done.returncode == 2
    assert "test/digit/accuracy" in done.stderr


def test_settings_of_the_submission_count_not_the_file(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(GRID))
    grid, runs = study(base=GRID["base"] | {"steps": 7})
    submit(grid, runs, GridFolder(tmp_path / "study"))
    read, folder = submitted_grid(str(tmp_path / "study.yaml"), tmp_path)
    assert read == grid
    assert submitted_runs(read, folder).runs == runs


def test_data_of_the_newest_submission_is_taken(tmp_path):
    grid, older = study()
    folder = GridFolder(tmp_path / "study")
    newer = expand(grid, {"tridigits": "a" * 16})
    submit(grid, newer, folder)
    for _ in range(
        9
    ):  # the tenth submission is newer than the ninth, but not in the order of names
        folder.new_submission()
    submit(grid, older, folder)
    assert submitted_runs(grid, folder).runs[0].data_fingerprint == FINGERPRINT
    submit(grid, newer, folder)
    assert submitted_runs(grid, folder).runs[0].data_fingerprint == "a" * 16


def test_data_never_submitted_has_missing_runs(tmp_path):
    grid = Grid.model_validate(GRID | {"variants": {"base": {}, "full": {"data.name": "mmimdb"}}})
    folder = GridFolder(tmp_path / "study")
    submit(grid, expand(grid, {"tridigits": FINGERPRINT, "mmimdb": "b" * 16})[:5], folder)
    runs = submitted_runs(grid, folder).runs
    assert [run.data_fingerprint for run in runs] == [FINGERPRINT] * 5 + ["never submitted"] * 5


def test_tables_without_matplotlib(tmp_path, capsys, monkeypatch):
    """Only the figures are missing, and a message says how to get them."""
    monkeypatch.setattr("furnace_hpc.aggregate.find_spec", lambda name: None)
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    submit(grid, runs, folder)
    for spec in runs:
        finish(spec, folder)
    assert show_table(grid, folder, tmp_path / "out") == 0
    assert "pip install 'furnace-hpc[report]'" in capsys.readouterr().err
    assert sorted(written(tmp_path / "out")) == TABLES


def test_submit_can_show_the_table(tmp_path, capsys):
    grid, runs = study()
    folder = GridFolder(tmp_path / "study")
    submit(grid, runs, folder)
    for spec in runs[:-1]:
        finish(spec, folder)
    assert show_table(grid, folder, tmp_path / "out", figures=False) == 1
    assert "1 of 20 runs is missing" in capsys.readouterr().err
    finish(runs[-1], folder)
    assert show_table(grid, folder, tmp_path / "out", figures=False) == 0
    with pytest.raises(ConfigError, match="has no runs under"):
        show_table(grid, GridFolder(tmp_path / "none"), tmp_path / "out")
