"""What a grid's runs are on a real Slurm, and what comes after a wave: status, cancel, follow-up jobs, retries."""

import json
from pathlib import Path

import pytest
from slurm_study import Study, shim

from slurm import CannotStart, Cluster, start_cluster, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def follow_up_log(study: Study) -> str:
    """What the follow-up jobs printed."""
    return "".join(path.read_text() for path in sorted(study.folder.glob("submissions/*/[0-9]*_0_log.out")))


def test_a_wave_is_followed_by_the_next_and_by_the_table(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("ok", "dies", "crash"), seeds=3)
    study.write({"max_submit_jobs": 6, "array_parallelism": 2, "retries": 1})
    said = study.submitted()
    assert "5 runs of 1 nodes x 1 ranks" in said
    assert "sends the 4 runs left" in said
    waiting = [run for run in study.status().values() if run["reason"].startswith("waits for a later wave")]
    assert len(waiting) == 4
    assert "nothing to do" in study.submitted()  # they are on their way: nothing is submitted twice
    wait_until(lambda: (study.place / "results/study/table.md").exists(), 90, "the table of the last follow-up job")
    starts = study.starts()
    assert starts == {run: 2 if run.startswith("dies") else 1 for run in starts}  # one retry, and only of the killed
    assert len(starts) == 9
    assert study.states() == {"done": 3, "interrupted": 3, "failed": 3}
    table = (study.place / "results/study/table.md").read_text()
    assert "0 of 3" in table
    assert "ValueError: on purpose" in table
    done = study.furnace("aggregate", "--grid", "study", "--no-figures")
    assert done.returncode == 1
    assert "6 of 9 runs are missing" in done.stderr

    said = study.submitted("--retry", "failed", "--variant", "crash")
    assert "3 runs (3 retry) on dev" in said
    wait_until(lambda: study.starts().total() >= 15, 30, "the failed ones to start again")
    assert {run: n for run, n in study.starts().items() if n != starts[run]} == {
        run: 2 for run in starts if run.startswith("crash")
    }


def test_at_most_so_many_run_at_a_time_and_cancel_stops_all(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("waits", "waits2"), seeds=3, profile={"array_parallelism": 2})
    study.submitted()
    study.wait_for_starts(2)
    study.wait_for(running=2, queued=4)
    reasons = [run["reason"] for run in study.status().values() if run["state"] == "queued"]
    assert all("JobArrayTaskLimit" in reason for reason in reasons)
    done = study.furnace("cancel", "--grid", "study", "--variant", "waits2")
    assert "cancelled 3 jobs" in done.stdout
    done = study.furnace("cancel", "--grid", "study", PATH=shim(study.place, "scancel", COUNTING))
    assert (done.returncode, done.stderr) == (0, "")
    assert len((study.place / "calls").read_text().splitlines()) == 1
    wait_until(lambda: not study.queue(), 30, "an empty queue")
    study.wait_for(interrupted=2, new=4)
    stopped = [run for run in study.status().values() if run["state"] == "interrupted"]
    assert all("cancelled" in run["reason"] for run in stopped), stopped
    assert "nothing is running or waiting" in study.furnace("cancel", "--grid", "study").stdout
    (study.folder / "release").touch()
    assert "6 runs (2 resume, 4 start) on dev" in study.submitted()
    study.wait_for(done=6)


COUNTING = 'echo "$0 $*" >> "$(dirname "$0")/../calls"; exec $REAL "$@"'


def test_status_asks_slurm_once_for_all_and_commands_share_the_answer(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("ok", "ok2", "ok3"), seeds=20, profile={"partition": "closed"})
    study.submitted()
    for name in ("squeue", "sacct"):
        path = shim(study.place, name, COUNTING)
    for _ in range(3):
        done = study.furnace("status", "--grid", "study", PATH=path)
        assert "60 runs: 60 queued" in done.stdout
        assert "PartitionDown" in done.stdout
    assert len((study.place / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("setup", "says"),
    [("module load cuda/99", "module load cuda/99"), ("export PATH=/nowhere", "python3: command not found")],
)
def test_what_fails_before_a_run_begins_is_told_from_the_batch_log(quiet: Cluster, tmp_path: Path, setup, says):
    study = Study(quiet, tmp_path, profile={"setup": [setup], "retries": 0})
    study.submitted()
    study.wait_for(interrupted=1)
    [run] = study.status().values()
    assert "ended before the run began (its job failed)" in run["reason"]
    assert says in run["reason"]
    logs = study.furnace("status", "--grid", "study", "--logs", "ok")
    assert says in logs.stdout
    assert "1 runs (1 start)" in study.submitted("--dry-run")


def test_a_job_that_slurm_requeues_goes_on_as_the_next_attempt(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("waits",))
    study.submitted()
    study.wait_for(running=1)
    [run] = study.status().values()
    assert quiet.run("scontrol", "requeue", run["job_id"]).returncode == 0
    study.wait_for(queued=1)
    assert run["job_id"] in study.status()[run["run"]]["reason"]
    study.wait_for_starts(2)
    (study.folder / "release").touch()
    study.wait_for(done=1)
    first, second = study.attempts("waits")
    assert first["job_id"] == second["job_id"] == run["job_id"]
    assert (second["reason"], first["end_unix_s"] is not None) == ("done", True)


def test_a_run_whose_node_dies_goes_on_elsewhere(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("waits",))
    study.submitted()
    study.wait_for(running=1)
    node = study.attempts("waits")[0]["holder"]["host"]
    quiet.kill_node(node)
    quiet.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")  # as after SlurmdTimeout
    study.wait_for(queued=1)
    study.wait_for_starts(2, timeout_s=120)
    (study.folder / "release").touch()
    study.wait_for(done=1)
    first, second = study.attempts("waits")
    assert first["reason"] == "killed"
    assert second["holder"]["host"] != node


def test_the_controller_may_go_and_come_back_while_runs_run(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, variants=("waits",), seeds=2)
    study.submitted()
    study.wait_for(running=2)
    known = (study.folder / "slurm.json").read_text()
    quiet.stop_controller()
    (study.folder / "slurm.json").write_text(json.dumps(json.loads(known) | {"asked_unix_s": 0}))
    done = study.furnace("status", "--grid", "study")
    assert "2 runs: 2 running, Slurm does not answer: " in done.stdout
    assert "(last answer: " in done.stdout
    quiet.restart_controller()
    study.wait_for(running=2)
    (study.folder / "release").touch()
    study.wait_for(done=2)
    assert study.starts().total() == 2


def test_a_limit_on_submitted_jobs_is_seen_and_kept(quiet: Cluster, tmp_path: Path):
    study = Study(quiet, tmp_path, seeds=9)
    change = ("sacctmgr", "--immediate", "modify", "qos", "normal", "set")
    assert quiet.run(*change, "MaxSubmitJobsPerUser=5").returncode == 0
    try:
        said = study.submitted()
        assert "4 runs of 1 nodes x 1 ranks" in said  # and the follow-up job is the fifth
        assert "sends the 5 runs left" in said
        done = study.submit("--set", "steps=7")
        assert (done.returncode, done.stdout.count("submitted")) == (2, 0)
        assert "as many jobs as the site allows" in done.stderr
        wait_until(lambda: study.starts().total() == 9, 60, "all nine, in three waves")
        study.wait_for(done=9)
    finally:
        assert quiet.run(*change, "MaxSubmitJobsPerUser=-1").returncode == 0


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
