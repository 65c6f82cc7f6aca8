"""The names of runs that `furnace export` accepts."""

from pathlib import Path

import pytest
from login_study import finish, grid, planned, specs

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.export import folder_of
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder


def test_export_accepts_the_beginning_of_a_run(tmp_path, monkeypatch):
    """Paths that exist stay as they are, and so does a single word."""
    write_submission(planned(tmp_path / "runs", grid()))
    run = finish(specs()[0], GridFolder(tmp_path / "runs" / "study"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FURNACE_RUNS", raising=False)
    wanted = Path("runs") / "study" / run.run_id
    assert folder_of(Path("study") / run.run_id) == wanted
    assert folder_of(Path("study") / run.run_id[:-2]) == wanted
    assert folder_of(Path("runs/study") / run.run_id[:-2]) == wanted
    assert folder_of(run.path) == run.path
    assert folder_of(Path("nowhere")) == Path("nowhere")
    with pytest.raises(ConfigError, match="unknown run 'other'; valid: "):
        folder_of(Path("study/other"))
    with pytest.raises(ConfigError, match="'no/run' is not a run. Give the folder of a run, or"):
        folder_of(Path("no/run"))
