"""A real Slurm whose commands print banners, and whose queue has jobs with odd names."""

import json
import sys
from pathlib import Path

import pytest
from real_study import RealStudy
from slurm_cluster import Cluster, wait_until
from slurm_study import Study, shim

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
BANNER = r"CLUSTER: alpha\n\n*** job 5 of the news | 12 | RUNNING ***\n\377\n"
NOISE = f"printf '{BANNER}'\nexec $REAL \"$@\""
COMMANDS = ("squeue", "sacct", "sinfo", "sacctmgr", "scontrol", "sbatch", "scancel")


def test_banners_and_odd_names_change_no_state(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("waits", "ok"))
    path = ""
    for name in COMMANDS:
        path = shim(study.place, name, NOISE)
    said = study.submitted(PATH=path)
    assert "submitted array" in said
    study.wait_for_starts(2)
    sent = [
        json.loads(line) for line in next(study.folder.glob("submissions/*/journal.jsonl")).open()
    ]
    [array] = [
        event for event in sent if event["event"] == "submitted" and "follow" not in event["name"]
    ]
    fakes = [f"x\n{array['job_id']}|{row}|FAILED|NodeDown|{array['name']}" for row in (0, 1)]
    for odd in (*fakes, "a|b|c|d|e", "\n\n", "x\x0cy\r|", "é\u2028", array["job_id"]):
        done = quiet.run(
            "sbatch", "--partition=closed", "--output=/dev/null", "-J", odd, "--wrap=true"
        )
        assert done.returncode == 0, done.stderr
    wait_until(
        lambda: states(study, path) == {"waits": "running", "ok": "done"},
        60,
        "the states of both runs",
    )
    done = study.furnace("status", "--grid", "study", PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to do" in study.submitted(PATH=path)
    doctor = study.furnace("doctor", "--no-job", "--cluster", "dev", "--json", PATH=path)
    checks = {c["name"]: c for s in json.loads(doctor.stdout)["sections"] for c in s["checks"]}
    assert checks["controller"]["level"] == checks["partition a100"]["level"] == "ok", doctor.stdout
    assert checks["other lines"]["level"] == "warn"
    (study.folder / "release").touch()
    wait_until(
        lambda: states(study, path) == {"waits": "done", "ok": "done"}, 60, "the end of both runs"
    )


def states(study: Study, path: str) -> dict[str, str]:
    cache = study.folder / "slurm.json"
    cache.unlink(missing_ok=True)
    done = study.furnace("status", "--grid", "study", "--json", PATH=path)
    assert "Traceback" not in done.stderr, done.stderr
    return {run["run"].partition("-s")[0]: run["state"] for run in json.loads(done.stdout)}


def test_an_account_in_any_case_has_its_limit(quiet: Cluster, tmp_path: Path):
    for change in (
        "add account MyLab",
        "add user root account=MyLab",
        "modify user root where account=mylab set MaxSubmitJobs=3",
    ):
        quiet.run("sacctmgr", "--immediate", *change.split())
    try:
        study = Study(
            quiet,
            tmp_path,
            variants=("ok",),
            seeds=6,
            profile={"partition": "closed", "account": "MyLab"},
        )
        assert "2 runs of" in study.submitted().partition("submitted array")[2]
        assert sum(study.elements().values()) == 2
    finally:
        study.furnace("cancel", "--grid", "study")
        quiet.run("sacctmgr", "--immediate", "delete", "account", "mylab")


def test_of_two_partitions_slurm_takes_one(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path)
    # debug allows five minutes
    base = {"resources": {"partition": "debug, a100", "timeout_min": 60}}
    import yaml

    grid = yaml.safe_load((study.place / "study.yaml").read_text())
    (study.place / "study.yaml").write_text(yaml.safe_dump(grid | {"base": grid["base"] | base}))
    assert "on debug,a100" in study.submitted()
    study.wait_for(done=1)


@pytest.mark.distributed
def test_unusable_gpus_fail_one_run_of_twenty(quiet: Cluster, tmp_path: Path, small_root: Path):
    (tmp_path / "data").symlink_to(small_root)
    profile = {
        "nodes": 1,
        "processes_per_node": 2,
        "gpu_flag": "gpus_per_node",
        "array_parallelism": 32,
        "python": sys.executable,
        "setup": ["unset DS_ACCELERATOR", "export OMP_NUM_THREADS=1"],
    }
    study = RealStudy(quiet, tmp_path, profile=profile)
    text = (tmp_path / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(
        text.replace("seeds:\n- 0\n", f"seeds: {list(range(10))}\n")
    )
    study.submitted()
    wait_until(
        lambda: (study.place / "results/study/table.md").exists(), 200, "the follow-up job's end"
    )
    found = study.status().values()
    [failed] = [run for run in found if run["state"] == "failed"]
    others = [run for run in found if run["state"] == "new"]
    assert "this rank was given GPUs" in failed["reason"]
    assert len(others) == 19
    assert all("not started: torch cannot use the GPUs" in run["reason"] for run in others)
    assert len(list(study.folder.glob("*/attempts/*.json"))) == 1
