"""What a submission writes if it is refused."""

import pytest
from login_study import grid, planned

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.launch import slurm_array
from furnace_hpc.launch.arrays import Limits
from furnace_hpc.runs.journal import submissions
from furnace_hpc.slurm.client import CommandResult

REFUSED = CommandResult(False, "", "allocation failure: Invalid account or account/partition")


def pretend(monkeypatch, answer: CommandResult) -> None:
    monkeypatch.setattr(slurm_array.client, "test_only", lambda text: answer)
    monkeypatch.setattr(slurm_array.client, "longest_min", lambda partition: None)
    monkeypatch.setattr(slurm_array, "site_limits", lambda profile, live_jobs: Limits())


def test_a_refused_plan_writes_nothing(tmp_path, monkeypatch):
    """Else a follow-up job would find another grid, and the table a plan that never ran."""
    plan = planned(tmp_path, grid(), ClusterProfile(name="c", executor="slurm", gpu_flag=None))
    pretend(monkeypatch, REFUSED)
    with pytest.raises(ConfigError, match="Invalid account"):
        slurm_array.submit_plan(plan, 0)
    assert not plan.folder.grid.exists()
    assert not plan.folder.submissions.exists()


def test_a_python_without_archive_withdraws(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir(mode=0o700)
    profile = ClusterProfile(
        name="c", executor="slurm", gpu_flag=None, stage_python=True, scratch="/tmp", python="/no"
    )
    plan = planned(tmp_path / "runs", grid(), profile)
    with pytest.raises(ConfigError, match="does not start here"):
        slurm_array.prepare(plan)
    assert submissions(plan.folder) == []
