"""Submitting to a real Slurm: once, whole, whatever cuts it off."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash import POINTS
from slurm_study import Study, shim

from slurm import Cluster, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
CLOSED = {"partition": "closed"}  # takes jobs, runs none: they can be counted
ONCE = dict.fromkeys(range(4), 1)  # each of the study's four runs has one array element


@pytest.fixture
def study(quiet: Cluster, tmp_path: Path) -> Study:
    return Study(quiet, tmp_path, variants=("ok", "ok2"), seeds=2, profile=CLOSED)


def test_a_killed_submission_is_finished_and_nothing_is_missing_or_doubled(study: Study):
    for point in POINTS:
        killed = study.submit(script=f"crash.py {point}")
        assert killed.returncode == -signal.SIGKILL, (point, killed.stdout, killed.stderr)
        study.submitted()
        assert study.elements() == ONCE, point
        assert "nothing to do" in study.submitted(), point
        assert study.elements() == ONCE, point
        study.furnace("cancel", "--grid", "study")
        wait_until(lambda: not study.queue(), 30, "an empty queue")
        study.folder.rename(study.folder.with_name(f"after-{point}"))


@pytest.mark.parametrize(
    ("script", "exists", "says"),
    [
        ('$REAL "$@" >/dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1', True, ""),
        ('$REAL "$@" >/dev/null; kill -9 $$', True, ""),
        ('echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1', False, "away"),
    ],
    ids=["timed out after accepting", "killed after accepting", "controller away"],
)
def test_an_sbatch_that_fails_is_believed_only_when_slurm_has_no_such_job(study: Study, script, exists, says):
    done = study.submit(PATH=shim(study.place, "sbatch", script))
    assert done.returncode == (0 if exists else 1), done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert study.elements() == (ONCE if exists else {})
    study.submitted()
    assert study.elements() == ONCE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_sbatch_that_hangs_does_not_outlive_a_submit_that_is_ended(study: Study, number):
    slow = shim(study.place, "sbatch", f'touch {study.place}/asked; sleep 4; exec $REAL "$@"')
    command = [sys.executable, "-m", "furnace_hpc.submit", "--grid", "study.yaml", "--cluster", "dev", "--yes"]
    process = subprocess.Popen(
        command, cwd=study.place, env=study.cluster.environment | {"PATH": slow}, stdout=-3, stderr=-3
    )
    wait_until(lambda: (study.place / "asked").exists(), 30, "sbatch")
    process.send_signal(number)
    process.wait(timeout=30)
    study.submitted()
    time.sleep(4)
    assert study.elements() == ONCE


def test_a_submission_cut_off_before_its_follow_up_job_gets_one(study: Study):
    assert study.submit(script="crash.py after:2").returncode == -signal.SIGKILL
    assert [index for _, index in study.queue()].count("N/A") == 0
    said = study.submitted()
    assert "which retries what was interrupted, and makes the table" in said
    assert [index for _, index in study.queue()].count("N/A") == 1
    assert study.elements() == ONCE


def test_a_refused_follow_up_job_is_said_and_the_array_stays(study: Study):
    study.write(CLOSED | {"follow_up_partition": "nowhere"})
    said = study.submitted()
    assert "submitted array " in said
    assert "no follow-up job (sbatch refused job furnace-study-follow-" in said
    assert study.elements() == ONCE


def test_of_two_submits_at_the_same_time_one_is_refused(study: Study):
    slow = shim(study.place, "sbatch", 'sleep 2; exec $REAL "$@"')
    command = [sys.executable, "-m", "furnace_hpc.submit", "--grid", "study.yaml", "--cluster", "dev", "--yes"]
    both = [
        subprocess.Popen(command, cwd=study.place, env=study.cluster.environment | {"PATH": slow}, stderr=-1, text=True)
        for _ in range(2)
    ]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2]
    assert any("is being submitted or run by process" in words for words, _ in ends)
    assert study.elements() == ONCE


REFUSED = (
    ({"partition": "nowhere"}, "set `partition` in the profile"),
    ({"account": "nobody"}, "set `account` in the profile"),
    ({"qos": "best"}, "set `qos` in the profile"),
    ({"cpus_per_task": 1000}, "the profile asks for more than the partition's nodes have"),
    ({"nodes": 16}, "the profile asks for more than the partition's nodes have"),
    ({"gpu_flag": "gres", "gpu_type": "b200", "gpus_per_node": 1}, "the profile asks for more than"),
    ({"constraint": "ib"}, "mend `constraint` in the profile"),
    ({"partition": "debug"}, "more than partition debug allows (5)"),
)


def test_what_slurm_refuses_is_one_sentence_with_the_mend(study: Study):
    for profile, mend in REFUSED:
        study.write(CLOSED | profile)
        done = study.submit()
        assert done.returncode == 2, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: sbatch refused job furnace-study-" if "debug" not in mend else "error: ")
        assert mend in done.stderr
    assert study.elements() == {}
    assert not (study.folder / "submissions").exists()
    assert not list(study.folder.glob("*/spec.json"))
    study.write(CLOSED | {"wckey": "a b"})  # this Slurm asks for none, and a blank must not split the flag
    study.submitted()
    assert study.elements() == ONCE


def test_of_several_shapes_none_is_submitted_when_one_would_be_refused(study: Study):
    study.write(CLOSED, variants={"ok": {}, "ok2": {"loss.alpha": 0.1, "resources.nodes": 16}})
    done = study.submit()
    assert done.returncode == 2
    assert "sbatch would refuse 2 runs of 16 nodes x 1 ranks" in done.stderr
    assert study.queue() == []
    study.write(CLOSED, variants={"ok": {}, "ok2": {"loss.alpha": 0.1, "resources.nodes": 2}})
    study.submitted()
    assert study.elements() == ONCE
    assert len({name for name, index in study.queue() if index != "N/A"}) == 2


def test_no_variable_of_an_outer_job_reaches_the_jobs(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, profile={"setup": [f"env > {tmp_path}/seen"], "follow_up": False})
    outer = {
        "SLURM_JOB_ID": "77",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_ARRAY_TASK_ID": "9",
        "SBATCH_PARTITION": "nowhere",
        "SRUN_CPUS_PER_TASK": "3",
        "PMI_RANK": "3",
        "RANK": "5",
        "MASTER_ADDR": "other",
        "CUDA_VISIBLE_DEVICES": "7",
        "SQUEUE_FORMAT": "%i",
        "SACCT_FORMAT": "JobID",
        "MINE": "kept",
    }
    study.submitted(**outer)
    study.wait_for(done=1)
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["MINE"] == "kept"
    assert seen["SLURM_ARRAY_TASK_ID"] == "0"
    for name in ("SLURM_CPU_BIND", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "PMI_RANK", "RANK", "MASTER_ADDR"):
        assert name not in seen
    assert "CUDA_VISIBLE_DEVICES" not in seen


def test_a_controller_that_is_away_is_said_and_nothing_is_half_done(study: Study):
    study.cluster.stop_controller()
    done = study.submit()
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: Slurm does not answer: ")
    assert len(done.stderr.splitlines()) == 1
    assert not study.folder.exists()
    study.cluster.restart_controller()
    study.submitted()
    assert study.elements() == ONCE
