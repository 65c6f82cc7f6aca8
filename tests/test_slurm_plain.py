"""Clusters unlike the session's: without accounting, or whose nodes do not see what the login node sees."""

from pathlib import Path

import pytest
from slurm_study import Study

from slurm import CannotStart, Cluster, start_cluster, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def test_a_folder_that_compute_nodes_cannot_see_is_told(tmp_path_factory, tmp_path: Path):
    hidden = tmp_path / "login only"
    hidden.mkdir()
    plain = started(tmp_path_factory, "--no-accounting", "--hide", str(hidden))
    try:
        study = Study(plain, hidden, profile={"retries": 0, "follow_up": False})
        study.submitted()
        study.wait_for(interrupted=1)
        [run] = study.status().values()
        assert "do compute nodes see that folder, and has it space?" in run["reason"]
        study.write({"shared_folders": ["/home", "/scratch"]})
        done = study.submit()
        assert done.returncode == 2
        assert "do not see (they see /home, /scratch): choose --runs-root below one of these" in done.stderr
    finally:
        plain.down()


def started(factory, *options: str) -> Cluster:
    """Another cluster, with other settings."""
    try:
        return start_cluster(factory.mktemp("plain") / "c", *options)
    except CannotStart as reason:
        pytest.skip(f"no Slurm here: {reason}")


def test_without_accounting_nothing_is_lost_doubled_or_called_failed(tmp_path_factory, tmp_path: Path):
    plain = started(tmp_path_factory, "--no-accounting", "--max-array-size", "3")
    try:
        study = Study(plain, tmp_path, variants=("ok", "dies"), seeds=2, profile={"retries": 0})
        said = study.submitted()
        assert said.count("submitted array") == 2  # of at most three elements each
        wait_until(lambda: (study.place / "results/study/table.md").exists(), 60, "the table")
        assert study.states() == {"done": 2, "interrupted": 2}
        assert set(study.starts().values()) == {1}
        plain.run("scontrol", "reconfigure")
        killed = study.submit(script="crash.py after:1")
        assert killed.returncode == -9
        said = study.submitted()
        assert "never reached Slurm" in said
        wait_until(lambda: study.starts().total() == 6, 30, "two more starts")
    finally:
        plain.down()
