"""What a submission writes if it is refused."""

import pytest
from login_study import grid, planned

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.launch import slurm_array
from furnace_hpc.runs.journal import submissions


def test_a_python_without_archive_withdraws(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir(mode=0o700)
    profile = ClusterProfile(
        name="c", executor="slurm", gpu_flag=None, stage_python=True, scratch="/tmp", python="/no"
    )
    plan = planned(tmp_path / "runs", grid(), profile)
    with pytest.raises(ConfigError, match="does not start here"):
        slurm_array.prepare(plan)
    assert submissions(plan.folder) == []
