"""One path through a real Slurm, from submit to the table. The ranks are stand-ins."""

from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study


@pytest.mark.slurm
def test_from_submit_to_the_table(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("ok", "ok2"), seeds=2)
    assert "4 runs" in study.submitted()
    study.wait_for(done=4)
    table = study.place / "results" / "study" / "table.md"
    wait_until(table.exists, 60, "the table of the follow-up job")
    assert study.starts().total() == 4
    assert "study" in study.submitted()
    assert study.starts().total() == 4
