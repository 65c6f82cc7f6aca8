"""States of runs on a real Slurm: cancel, requeued jobs, dead nodes, a controller that is away."""

import json
import re
import time
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study, shim

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def test_array_parallelism_and_cancel(quiet: Cluster, tmp_path: Path):
    study = Study(
        quiet, tmp_path, variants=("waits", "waits2"), seeds=3, profile={"array_parallelism": 2}
    )
    study.submitted()
    study.wait_for_starts(2)
    wait_until(lambda: held_back(study) == 4, 30, "Slurm's reason why four do not run")
    assert study.states() == {"running": 2, "queued": 4}
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


def held_back(study: Study) -> int:
    return sum(
        run["state"] == "queued" and "JobArrayTaskLimit" in run["reason"]
        for run in study.status().values()
    )


COUNTING = 'echo "$0 $*" >> "$(dirname "$0")/../calls"; exec $REAL "$@"'


def test_status_asks_slurm_once(quiet: Cluster, tmp_path: Path):
    """Later commands use the cached answer."""
    study = Study(
        quiet, tmp_path, variants=("ok", "ok2", "ok3"), seeds=20, profile={"partition": "closed"}
    )
    study.submitted()
    for name in ("squeue", "sacct"):
        path = shim(study.place, name, COUNTING)
    for _ in range(3):
        fresh(study)
        done = study.furnace("status", "--grid", "study", PATH=path)
        assert "60 runs: 60 queued" in done.stdout
        assert "PartitionDown" in done.stdout
    assert len((study.place / "calls").read_text().splitlines()) == 1


def fresh(study: Study) -> None:
    """On a busy machine the commands take longer than an answer is fresh."""
    cache = study.folder / "slurm.json"
    if cache.exists():
        known = json.loads(cache.read_text())
        cache.write_text(json.dumps(known | {"asked_unix_s": time.time()}))


@pytest.mark.parametrize(
    ("setup", "says"),
    [
        ("module load cuda/99", "module load cuda/99"),
        ("export PATH=/nowhere", "python3: command not found"),
    ],
)
def test_a_failure_before_the_run_begins(quiet: Cluster, tmp_path: Path, setup, says):
    """Status shows the last line of the batch log."""
    study = Study(quiet, tmp_path, profile={"setup": [setup], "retries": 0})
    study.submitted()
    study.wait_for(interrupted=1)
    [run] = study.status().values()
    assert "ended before the run started (its job failed)" in run["reason"]
    assert says in run["reason"]
    logs = study.furnace("status", "--grid", "study", "--logs", "ok")
    assert says in logs.stdout
    assert "1 run (1 start)" in study.submitted("--dry-run")


def test_logs_show_output_before_the_run_began(quiet: Cluster, tmp_path: Path):
    study = Study(
        quiet, tmp_path, variants=("waits",), profile={"processes_per_node": 2, "retries": 0}
    )
    python = study.place / "python"
    error = "libnccl.so.2: cannot open shared object file"
    broken = f"""[ "${{SLURM_PROCID:-0}}" = 1 ] && {{ echo "{error}" >&2; exit 127; }}"""
    python.write_text(python.read_text().replace("\n", f"\n{broken}\n", 1))
    study.submitted()
    study.wait_for(interrupted=1)
    [run] = study.status().values()
    assert "1 ranks never started: see the batch log" in run["reason"]
    said = study.furnace("status", "--grid", "study", "--logs", "waits").stdout
    assert re.search(
        r"==> .*/submissions/1/\d+_0_0_log\.out\nlibnccl\.so\.2: cannot open shared object file",
        said,
    )


def test_held_jobs_and_dead_nodes(quiet: Cluster, tmp_path: Path):
    """Both runs resume as their next attempt."""
    # a node each
    study = Study(quiet, tmp_path, variants=("waits", "waits2"), profile={"cpus_per_task": 64})
    study.submitted()
    study.wait_for_starts(2)
    [first], [second] = study.attempts("waits-"), study.attempts("waits2-")
    node = second["holder"]["host"]
    assert first["holder"]["host"] != node
    assert quiet.run("scontrol", "requeuehold", first["job_id"]).returncode == 0
    quiet.kill_node(node)
    # as after SlurmdTimeout
    quiet.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")
    wait_until(lambda: held(study, first["job_id"]), 30, "a status that says that the job is held")
    assert f"released job {first['job_id']}, which Slurm had requeued and held" in study.submitted()
    study.wait_for_starts(4, timeout_s=120)
    (study.folder / "release").touch()
    study.wait_for(done=2)
    runs = ("waits-", "waits2-")
    wait_until(  # a run is done before its job has recorded the end
        lambda: all("reason" in attempt for run in runs for attempt in study.attempts(run)),
        60,
        "an end reason of each attempt",
    )
    ends = [[attempt["reason"] for attempt in study.attempts(run)] for run in runs]
    assert [end[1] for end in ends] == ["done", "done"]
    assert ends[1][0] == "node_fail"
    assert [attempt["job_id"] for attempt in study.attempts("waits-")] == [first["job_id"]] * 2
    assert study.attempts("waits2-")[1]["holder"]["host"] != node


def test_accounting_agrees_with_the_attempts(quiet: Cluster, tmp_path: Path):
    gpus = {"gpu_flag": "gpus_per_node", "gpu_type": "a100", "gpus_per_node": 2}
    study = Study(quiet, tmp_path, variants=("waits", "ok"), profile=gpus)
    study.submitted()
    study.wait_for_starts(2)
    [first] = study.attempts("waits")
    assert quiet.run("scontrol", "requeue", first["job_id"]).returncode == 0
    study.wait_for_starts(3, timeout_s=120)
    wait_until(
        lambda: accounting(study)[:2] == ["2", "2"],
        30,
        "the ended ones; the running one is not counted yet",
    )
    (study.folder / "release").touch()
    study.wait_for(done=2)
    wait_until(
        lambda: accounting(study)[:2] == ["3", "2"], 60, "all three allocations of the two jobs"
    )
    slurms, attempts = map(float, accounting(study)[2:])
    spent_s = [
        2 * (a["end_unix_s"] - a["start_unix_s"])
        for run in ("waits", "ok")
        for a in study.attempts(run)
    ]
    assert len(spent_s) == 3
    assert attempts == pytest.approx(sum(spent_s) / 3600, abs=0.006)
    assert slurms >= attempts - 3 * 2 / 3600 - 0.01  # Slurm begins earlier, and cuts seconds off


def accounting(study: Study) -> list[str]:
    """Return allocations, jobs, GPU-hours of Slurm and of the attempts, from the table's note."""
    said = study.furnace("aggregate", "--grid", "study", "--no-figures").stdout
    found = re.search(
        r"accounting: ([\d.]+) GPU-hours in (\d+) allocations? of (\d+) jobs.* have ([\d.]+)", said
    )
    return [found[2], found[3], found[1], found[4]] if found else []


def held(study: Study, job_id: str) -> bool:
    return any(
        run["state"] == "queued"
        and f"job {job_id} waits (job requeued in held state" in run["reason"]
        for run in study.status().values()
    )


def test_a_controller_that_is_away(quiet: Cluster, tmp_path: Path):
    """Runs continue, status reports it, and a submission is whole or nothing."""
    study = Study(quiet, tmp_path / "runs", variants=("waits",), seeds=2)
    other = Study(quiet, tmp_path / "other", seeds=4, profile={"partition": "closed"})
    study.submitted()
    study.wait_for_starts(2)
    study.wait_for(running=2)
    known = (study.folder / "slurm.json").read_text()
    quiet.stop_controller()
    (study.folder / "slurm.json").write_text(json.dumps(json.loads(known) | {"asked_unix_s": 0}))
    impatient = {"SLURM_CONF": quiet.impatient()}
    done = study.furnace("status", "--grid", "study", **impatient)
    assert "2 runs: 2 running. Slurm does not answer: " in done.stdout
    assert "(last answer: " in done.stdout
    done = other.submit(**impatient)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: Slurm does not answer: ")
    assert len(done.stderr.splitlines()) == 1
    assert not other.folder.exists()

    quiet.restart_controller()
    other.submitted()
    assert other.elements() == dict.fromkeys(range(4), 1)
    study.wait_for(running=2)
    (study.folder / "release").touch()
    study.wait_for(done=2)
    assert study.starts().total() == 2
