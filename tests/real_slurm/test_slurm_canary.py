"""`submit --canary` on a real Slurm: the follow-up job sends the rest with a measured limit."""

import json
import shutil

import pytest
import yaml
from slurm_cluster import wait_until
from test_slurm_train import GRID, RealStudy

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.distributed]


def test_the_follow_up_job_sends_the_rest(quiet, tmp_path, small_root):
    shutil.copytree(small_root, tmp_path / "data")
    study = RealStudy(quiet, tmp_path, profile={"nodes": 1})
    rows = {"first": {"loss.beta": 0.1}, "second": {"loss.beta": 0.3}}
    grid = GRID | {"variants": rows, "resources": {"timeout_min": "auto"}}
    (study.place / "study.yaml").write_text(yaml.safe_dump(grid))
    said = study.submitted("--canary")
    assert "2 runs (1 start, 1 wait) on dev" in said
    assert "1 run of 1 node x 1 rank, 30 min" in said
    assert "submits the runs that follow these" in said
    study.wait_for(300, done=2)
    first, second = study.attempts("first")
    assert (first["reason"], first["time_limit_s"], first["step"]) == ("canary", 1800, 20)
    assert (second["reason"], second["time_limit_s"]) == ("done", 300)
    assert [record["time_limit_s"] for record in study.attempts("second")] == [300]
    forecast = study.folder / "submissions/2/forecast.json"
    assert set(json.loads(forecast.read_text())["runs"]) == set(study.status())
    table = study.place / "results/study/table.md"
    wait_until(lambda: table.exists() and "missing: " not in table.read_text(), 90, "the table")
    said = study.furnace("status", "--grid", "study").stdout
    assert "forecast: " in said
    assert "it took " in said
