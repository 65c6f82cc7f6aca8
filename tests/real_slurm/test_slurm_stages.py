"""Rows that start from other rows, on a real Slurm: follow-up jobs submit each stage."""

from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
ROWS = {
    "ok": {},
    "ok_second": {"init_from": {"variant": "ok"}},
    "ok_third": {"init_from": {"variant": "ok_second"}, "optimizer.lr": 1e-4},
}


def test_follow_up_jobs_submit_all_stages(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, seeds=2)
    study.write({"array_parallelism": 4}, variants=ROWS)
    said = study.submitted()
    assert "6 runs (2 start, 4 wait) on dev" in said
    assert "submits the runs that follow these" in said
    study.wait_for(240, done=6)
    table = study.place / "results/study/table.md"
    wait_until(
        lambda: table.exists() and "missing: " not in table.read_text(), 90, "the last table"
    )
    assert all(count == 1 for count in study.starts().values())
    assert len(list(study.folder.glob("submissions/*/journal.jsonl"))) == 3
    assert "nothing to do" in study.submitted()


def test_a_failed_source_holds_its_rows_back(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, seeds=1)
    rows = {"ok": {}, "crashes": {"loss.alpha": 0.5}, "late": {"init_from": {"variant": "crashes"}}}
    study.write({}, variants=rows)
    study.submitted()
    study.wait_for(180, done=1, failed=1, new=1)
    wait_until(lambda: not study.follow_ups(), 90, "the end of the follow-up job")
    said = study.submitted()
    assert "needs the weights of crashes-s0" in said
    assert "failed: " in said
