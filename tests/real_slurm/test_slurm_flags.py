"""Flags of sbatch, tests of shapes and reasons of waiting on a real Slurm."""

import json
import sys
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_study import Study

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
HELD = {"comment": "it's #1; $(touch hacked) %j", "nice": 100, "hold": True, "exclusive": True}
RESERVATION = ("ReservationName=week", "StartTime=now", "Duration=60", "Users=root", "Nodes=node1")


def show(study: Study, job: str) -> dict[str, str]:
    """What `scontrol show job` says of a job."""
    text = study.cluster.run("scontrol", "show", "job", "--oneliner", job).stdout.splitlines()[0]
    pairs = [part.partition("=") for part in text.split(" ") if "=" in part]
    found = {key: value for key, _, value in pairs}
    found["Comment"] = text.partition("Comment=")[2].partition(" StdErr=")[0].rstrip()
    return found


def ids(study: Study, grid: str = "study") -> dict[str, str]:
    """Kind of the job (array, follow-up) -> id."""
    [journal] = (study.place / "runs" / grid).glob("submissions/*/journal.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    kinds = {event["name"]: event["kind"] for event in events if event["event"] == "intent"}
    return {
        kinds[event["name"]]: event["job_id"] for event in events if event["event"] == "submitted"
    }


def is_exclusive(job: dict[str, str]) -> bool:
    """Whether a job gets whole nodes. Slurm 26.05 has a field for it."""
    return job.get("Exclusive") == "NODE" or (
        "Exclusive" not in job and job["OverSubscribe"] == "NO"
    )


def test_slurm_gets_the_flags_as_written(quiet: Cluster, tmp_path: Path):
    """Flags of profile and grid reach the jobs. A held job says how to release it."""
    study = Study(quiet, tmp_path, seeds=2, profile={"sbatch": HELD})
    study.write({"sbatch": HELD}, resources={"sbatch": {"nice": 7, "exclusive": None}})
    done = study.submit(SBATCH_ACCOUNT="other", SBATCH_PARTITION="nowhere")
    assert done.returncode == 0, done.stderr
    assert "--comment=it's #1; $(touch hacked) %j --hold --nice=7" in done.stdout
    assert done.stderr.splitlines() == [
        "jobs do not get SBATCH_ACCOUNT, SBATCH_PARTITION: set keys of the cluster profile instead"
    ]
    jobs = ids(study)
    array, follow_up = show(study, jobs["array"]), show(study, jobs["follow-up"])
    assert array["Comment"] == follow_up["Comment"] == HELD["comment"]
    assert (array["Nice"], follow_up["Nice"]) == ("7", "7")
    assert not is_exclusive(array)
    assert (array["Reason"], follow_up["Reason"]) == ("JobHeldUser", "Dependency")
    assert not (tmp_path / "hacked").exists()
    states = study.status().values()
    assert {run["state"] for run in states} == {"queued"}
    for run in states:
        assert "waits (JobHeldUser: it is held; run `scontrol release JOB`" in run["reason"]
        assert run["waiting"]["starts"] == "after an action of yours"
    shown = study.furnace("status", "--grid", "study").stdout
    assert "2 runs cannot start without an action of yours: see the reason" in shown
    # status right after cancel: not the answer of before
    assert "cancelled 3 jobs" in study.furnace("cancel", "--grid", "study").stdout
    done = study.furnace("status", "--grid", "study", "--json")
    assert {run["state"] for run in json.loads(done.stdout)} == {"new"}, done.stdout


def test_what_slurm_refuses_is_not_submitted(quiet: Cluster, tmp_path: Path):
    """`sbatch --test-only` refuses it before sbatch, also in a dry run."""
    study = Study(quiet, tmp_path)

    def refused(*settings: str) -> str:
        words = [word for setting in settings for word in ("--set", f"resources.{setting}")]
        dry, done = study.submit("--dry-run", *words), study.submit(*words)
        assert (dry.returncode, done.returncode) == (2, 2), dry.stdout + done.stdout + done.stderr
        assert not list(study.folder.glob("submissions/*/rows.jsonl"))
        assert study.queue() == []
        assert dry.stderr == done.stderr
        [line] = done.stderr.splitlines()
        return line

    assert "Requested reservation is invalid" in refused("sbatch.reservation=none")
    assert "fix `licenses` in `sbatch`" in refused("sbatch.licenses=none")
    assert "sbatch would refuse 1 run of 16 nodes x 1 rank" in refused("nodes=16")
    assert "sbatch.reservatoin: sbatch has no option --reservatoin; did you mean" in refused(
        "sbatch.reservatoin=x"
    )
    assert "is more than partition debug allows (5)" in refused("partition=debug")


def test_limits_of_a_qos(quiet: Cluster, tmp_path: Path):
    """A QOS may lift the partition's time limit. Another one refuses a job, and is explained."""
    changes = (
        "add qos furlong Flags=PartitionTimeLimit",
        "add qos furshort Flags=DenyOnLimit MaxWall=10",
        "modify user root set qos+=furlong,furshort",
    )
    for change in changes:
        quiet.run("sacctmgr", "--immediate", *change.split())
    try:
        study = Study(quiet, tmp_path, profile={"partition": "debug", "qos": "furlong"})
        assert study.submit("--dry-run").returncode == 0
        study.submitted()
        wait_until(lambda: study.starts().total() == 1, 60, "the run of an hour")
        study.write({"partition": "a100", "qos": "furshort"})
        done = study.submit("--dry-run", "--set", "steps=7")
        assert done.returncode == 2
        assert "QOSMaxWallDurationPerJobLimit" in done.stderr
        assert "it asks for more than the QOS's limit of time for one job" in done.stderr
    finally:
        study.furnace("cancel", "--grid", "study")
        quiet.run("sacctmgr", "--immediate", "delete", "qos", "furlong,furshort")


def test_what_is_down_for_now_takes_jobs(quiet: Cluster, tmp_path: Path):
    """A partition that is down, or drained nodes, are no reason to refuse a job."""
    drained = Study(quiet, tmp_path / "drained")
    try:
        for word in ("state=drain", "state=resume"):
            quiet.run("scontrol", "update", "nodename=node[0-3]", word, "reason=test")
            dry = drained.submit("--dry-run")
            assert dry.returncode == 0, dry.stderr
            is_refused = "Requested node configuration is not available" in dry.stdout
            assert is_refused == (word == "state=drain"), dry.stdout[-300:]
    finally:
        quiet.run("scontrol", "update", "nodename=node[0-3]", "state=resume")
    study = Study(quiet, tmp_path, profile={"partition": ["closed"], "sbatch": {"exclusive": True}})
    dry = study.submit("--dry-run")
    assert dry.returncode == 0, dry.stderr
    study.submitted()
    [run] = study.status().values()
    assert "waits (PartitionDown: the partition is down; wait for the site)" in run["reason"]
    assert run["waiting"]["starts"] == "when the site changes something"
    study.furnace("cancel", "--grid", "study")


def test_a_reservation_and_the_place_in_the_queue(quiet: Cluster, tmp_path: Path):
    made = quiet.run("scontrol", "create", "reservation", *RESERVATION)
    assert made.returncode == 0, made.stderr
    try:
        study = Study(quiet, tmp_path / "first", variants=("waits",), seeds=1)
        more = {"sbatch": {"reservation": "week", "exclusive": True}}
        study.write(more)
        study.submitted()
        study.wait_for_starts(1)
        assert show(study, ids(study)["array"])["Reservation"] == "week"
        assert show(study, ids(study)["follow-up"])["Reservation"] == "week"
        # the reservation has one node, and it is taken
        second = Study(quiet, tmp_path / "second", seeds=1)
        second.write(more, name="second")
        second.submitted()
        job = ids(second, "second")["array"]
        wait_until(lambda: show(second, job)["Reason"] != "None", 30, "a reason")
        # Slurm gives a new follow-up job its reason, by which it is left out, some seconds later.
        follow_up = ids(second, "second")["follow-up"]
        wait_until(lambda: show(second, follow_up)["Reason"] == "Dependency", 60, "its reason")
        shown = second.furnace("status", "--grid", "second", "--queue").stdout
        assert "place 1 of 1 in the queue of a100" in shown, shown
        assert " waits (Re" in shown or " waits (Priority" in shown, shown
        (study.folder / "release").touch()
    finally:
        quiet.quieten()
        quiet.run("scontrol", "delete", "ReservationName=week")


def test_doctor_suggests_the_soonest_start(quiet: Cluster, tmp_path: Path):
    """All nodes of the cluster are free: the profile itself starts now, on fewer nodes too."""
    own = "name: own\nexecutor: slurm\npartition: a100\nnodes: 2\nprocesses_per_node: 2\n"
    (tmp_path / "own.yaml").write_text(f"{own}gpu_type: a100\ncpus_per_task: 1\n")
    command = (sys.executable, "-m", "furnace_hpc.doctor", "--json", "--no-job")
    done = quiet.run(*command, "--cluster", "own.yaml", cwd=tmp_path, timeout_s=300)
    sections = {one["title"]: one["checks"] for one in json.loads(done.stdout)["sections"]}
    found = {check["name"]: check["found"] for check in sections["Soonest start"]}
    assert found["a100 2 x 2"].startswith("now, on node")
    assert found["a100 1 x 4"].startswith("now, on node")
    assert found["a100 4 x 1"] == "now, on node[0-3]"
    assert found["suggestion"] == "a run of 60 minutes starts soonest with the profile as it is"
    assert "debug 2 x 2" not in found  # its time limit is five minutes
