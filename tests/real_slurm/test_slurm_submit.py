"""Submit to a real Slurm: once and whole, even if something cuts it off."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from crash import POINTS
from slurm_cluster import Cluster, wait_until
from slurm_study import HANG, Study, shim

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
CLOSED = {"partition": "closed"}  # takes jobs, runs none: they can be counted
ONCE = dict.fromkeys(range(4), 1)  # each of the study's four runs has one array element


@pytest.fixture
def study(quiet: Cluster, tmp_path: Path) -> Study:
    return Study(quiet, tmp_path, variants=("ok", "ok2"), seeds=2, profile=CLOSED)


def test_a_killed_submission_is_completed(study: Study):
    """The next submit leaves no run out, and submits none twice."""

    def kill_and_finish(point: str) -> None:
        place = study.place / point.replace(":", "-")
        one = Study(study.cluster, place, variants=("ok", "ok2"), seeds=2, profile=CLOSED)
        killed = one.submit(script=f"crash.py {point}")
        assert killed.returncode == -signal.SIGKILL, (point, killed.stdout, killed.stderr)
        one.submitted()
        assert one.elements() == ONCE, point
        assert "nothing to do" in one.submitted(), point
        assert one.elements() == ONCE, point
        one.furnace("cancel", "--grid", "study")
        wait_until(lambda: one.elements() == {}, 30, f"an end of all jobs after {point}")

    with ThreadPoolExecutor(6) as side_by_side:
        list(side_by_side.map(kill_and_finish, POINTS))
    assert study.queue() == []  # the journals had all jobs


@pytest.mark.parametrize(
    ("script", "exists", "says"),
    [
        (
            '$REAL "$@" >/dev/null; '
            'echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1',
            True,
            "",
        ),
        ('$REAL "$@" >/dev/null; kill -9 $$', True, ""),
        (
            'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; '
            "exit 1",
            False,
            "away",
        ),
    ],
    ids=["timed out after accepting", "killed after accepting", "controller away"],
)
def test_a_failed_sbatch_may_have_submitted(study: Study, script, exists, says):
    """Slurm is asked for the job."""
    done = study.submit(PATH=shim(study.place, "sbatch", script))
    assert done.returncode == (0 if exists else 1), done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert study.elements() == (ONCE if exists else {})
    study.submitted()
    assert study.elements() == ONCE


def test_an_sbatch_that_hangs_dies_with_submit(study: Study):
    def end_and_finish(number: signal.Signals) -> None:
        one = Study(
            study.cluster,
            study.place / number.name,
            variants=("ok", "ok2"),
            seeds=2,
            profile=CLOSED,
        )
        asked = one.place / "asked"
        slow = shim(
            one.place,
            "sbatch",
            f'echo $$ > "{asked}.new"; mv "{asked}.new" "{asked}"; {HANG}; exec $REAL "$@"',
        )
        process = begun(one, slow)
        wait_until(asked.exists, 30, "sbatch")
        process.send_signal(number)
        process.communicate(timeout=30)
        sbatch = int(asked.read_text())
        wait_until(lambda: has_ended(sbatch), 10, f"the end of sbatch after {number.name}")
        one.submitted()
        assert one.elements() == ONCE, number.name

    with ThreadPoolExecutor() as side_by_side:
        list(side_by_side.map(end_and_finish, (signal.SIGKILL, signal.SIGINT)))


def has_ended(pid: int) -> bool:
    """Whether a process has ended. Its exit code may be uncollected."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def begun(study: Study, path: str) -> "subprocess.Popen[str]":
    """Start a submit with this PATH."""
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.submit",
        "--grid",
        "study.yaml",
        "--cluster",
        "dev",
        "--yes",
    ]
    environment = study.cluster.environment | {"PATH": path}
    return subprocess.Popen(
        command, cwd=study.place, env=environment, stdout=-3, stderr=-1, text=True
    )


def test_a_missing_follow_up_job_is_submitted(study: Study):
    assert study.submit(script="crash.py after:2").returncode == -signal.SIGKILL
    assert study.follow_ups() == 0
    said = study.submitted()
    assert "which retries interrupted runs, and makes the table" in said
    assert study.follow_ups() == 1
    assert study.elements() == ONCE


def test_the_array_stays_without_a_follow_up_job(study: Study):
    study.write(CLOSED | {"follow_up_partition": "nowhere"})
    said = study.submitted()
    assert "submitted array " in said
    assert "no follow-up job (sbatch refused job furnace-study-follow-" in said
    assert study.elements() == ONCE


def test_one_of_two_submits_is_refused(study: Study):
    go = study.place / "go"
    slow = shim(study.place, "sbatch", f'until [ -e "{go}" ]; do sleep 0.05; done; exec $REAL "$@"')
    both = [begun(study, slow) for _ in range(2)]
    wait_until(lambda: any(process.poll() is not None for process in both), 30, "a refusal")
    go.touch()
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2]
    assert any("is being submitted or run by process" in words for words, _ in ends)
    assert study.elements() == ONCE


REFUSED = (
    ({"partition": "nowhere"}, "set `partition` in the profile"),
    ({"account": "missing"}, "set `account` in the profile"),
    ({"qos": "best"}, "set `qos` in the profile"),
    ({"cpus_per_task": 1000}, "the profile asks for more than the partition's nodes have"),
    ({"nodes": 16}, "the profile asks for more than the partition's nodes have"),
    (
        {"gpu_flag": "gres", "gpu_type": "b200", "gpus_per_node": 1},
        "the profile asks for more than",
    ),
    ({"constraint": "ib"}, "fix `constraint` in the profile"),
    ({"partition": "debug"}, "more than partition debug allows (5)"),
)


def test_a_refusal_is_one_error_with_a_fix(study: Study):
    for profile, hint in REFUSED:
        study.write(CLOSED | profile)
        done = study.submit()
        assert done.returncode == 2, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(
            "error: sbatch would refuse 4 runs of " if "debug" not in hint else "error: "
        )
        assert hint in done.stderr
    assert study.elements() == {}
    assert not (study.folder / "submissions").exists()
    assert not list(study.folder.glob("*/spec.json"))
    # this Slurm needs no wckey, and a space must not split the flag
    study.write(CLOSED | {"wckey": "a b"})
    study.submitted()
    assert study.elements() == ONCE


def test_several_shapes_are_all_submitted_or_none(study: Study):
    study.write(CLOSED, variants={"ok": {}, "ok2": {"loss.alpha": 0.1, "resources.nodes": 16}})
    done = study.submit()
    assert done.returncode == 2
    assert "sbatch would refuse 2 runs of 16 nodes x 1 rank" in done.stderr
    assert study.queue() == []
    study.write(CLOSED, variants={"ok": {}, "ok2": {"loss.alpha": 0.1, "resources.nodes": 2}})
    study.submitted()
    assert study.elements() == ONCE
    assert len({name for name, index in study.queue() if index != "N/A"}) == 2


def test_variables_of_an_outer_job_reach_no_job(quiet: Cluster, tmp_path: Path):
    study = Study(
        quiet, tmp_path, profile={"setup": [f"env > {tmp_path}/seen"], "follow_up": False}
    )
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
    for name in (
        "SLURM_CPU_BIND",
        "SBATCH_PARTITION",
        "SRUN_CPUS_PER_TASK",
        "PMI_RANK",
        "RANK",
        "MASTER_ADDR",
    ):
        assert name not in seen
    assert "CUDA_VISIBLE_DEVICES" not in seen
