"""A tuned grid on a real Slurm: the follow-up job submits the runs that follow these."""

import json
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
TUNE = {"space": {"optimizer.lr": {"log": [3e-4, 3e-2]}}, "trials": 2, "seeds": [100]}


def test_the_follow_up_job_submits_the_table(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("ok", "waits"), seeds=2)
    study.write({"array_parallelism": 4}, tune=TUNE)
    said = study.submitted()
    assert "4 runs of 1 node x 1 rank" in said
    assert "submits the runs that follow these" in said
    study.wait_for_starts(4)
    text = study.furnace("status", "--grid", "study").stdout
    assert "tuning 2/4" in text
    # The trials of `ok` have ended, so this submits its runs of the table, and no trial again.
    said = study.submitted()
    assert "row ok on tridigits: optimizer.lr 0.007374, trial 1 of 2" in said
    assert "4 runs (2 leave, 2 start) on dev" in said
    (study.folder / "release").touch()
    study.wait_for(180, done=8)
    table = study.place / "results/study/table.md"
    wait_until(
        lambda: table.exists() and "missing: " not in table.read_text(),
        90,
        "the table of the last follow-up job",
    )
    assert all(count == 1 for count in study.starts().values())
    choices = [json.loads(file.read_text()) for file in (study.folder / "tuning").iterdir()]
    assert sorted(choice["row"] for choice in choices) == ["ok", "waits"]
    assert {choice["trial"] for choice in choices} == {1}  # stand-ins give equal results
    lrs = {
        json.loads((run / "spec.json").read_text())["config"]["optimizer"]["lr"]
        for run in study.folder.glob("*-s[01]-*")
    }
    assert lrs == {0.007374}
    assert "Each row tuned with 2 trials" in table.read_text()
    assert study.furnace("aggregate", "--grid", "study", "--no-figures").returncode == 0
    assert "nothing to do" in study.submitted()


def test_cancel_ends_the_tuning(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("waits",), seeds=1)
    study.write({}, tune=TUNE)
    study.submitted()
    study.wait_for_starts(2)
    done = study.furnace("cancel", "--grid", "study", "--variant", "waits")
    assert done.returncode == 0, done.stderr
    assert "cancelled 2 jobs" in done.stdout
    wait_until(lambda: not study.follow_ups(), 60, "the end of the follow-up job")
    assert study.states() == {"interrupted": 2}
    assert not (study.folder / "tuning").exists()
