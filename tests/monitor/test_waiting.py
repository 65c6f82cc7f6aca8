"""Waiting runs in `status`: the reason, the expected start, and the place in the queue."""

from types import SimpleNamespace

import pytest
from status_study import RUNS, submit

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.monitor import grid_status, job_cache, queue_place
from furnace_hpc.monitor.grid_status import overview
from furnace_hpc.monitor.job_cache import FRESH_S, expire_job_cache, read_job_cache
from furnace_hpc.monitor.queue_place import Place, places, with_places
from furnace_hpc.monitor.render import summary
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.slurm.parsing import Job, PendingJob, read_pending

START = "2026-11-29T02:30:00"


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    """Four runs of array 5, with follow-up job 6."""
    made = GridFolder(tmp_path)
    submit(made, {"5": range(4), "6": []})
    return made


def queued(monkeypatch, **reasons: str) -> list[str]:
    """Replace squeue: element -> reason. Return the list of its calls."""
    calls: list[str] = []
    jobs = [
        Job(f"5{name}", "PENDING", reason, "5", START, "a100") for name, reason in reasons.items()
    ]

    def queue(users) -> list[Job]:
        calls.append("squeue")
        return [*jobs, Job("6", "PENDING", "Dependency", "6")]

    monkeypatch.setattr(job_cache.client, "queue", queue)
    monkeypatch.setattr(job_cache.client, "accounting", lambda ids: [])
    return calls


def test_status_says_why_a_run_waits(folder, monkeypatch):
    calls = queued(monkeypatch, _0="Priority", _1="PartitionConfig", _2="JobHeldUser", _3="None")
    lines, known = overview(folder)
    found = {line.run_id: line for line in lines}
    first = found[RUNS[0]]
    assert first.status.reason == (
        "job 5_0 waits (Priority: jobs of higher priority are before it); Slurm expects its start "
        "at 2026-11-29 02:30"
    )
    assert first.as_json()["waiting"] == {
        "reason": "Priority",
        "starts": "by itself",
        "expected_start": START,
    }
    assert "waits (PartitionConfig: no node of the partition has" in found[RUNS[1]].status.reason
    assert found[RUNS[1]].waiting.starts == "never"
    assert [found[run].waiting.needs_action for run in RUNS[:4]] == [False, True, True, False]
    assert summary(lines, known).endswith(
        "2 runs cannot start without an action of yours: see the reason"
    )
    assert calls == ["squeue"]


def test_places_in_the_queue():
    queue = """
    1 900 a100 Resources
    2 500 a100 Priority
    5 500 a100 Priority
    5 400 a100 None
    7 600 a100 Priority
    8 0 a100 JobHeldUser
    11 700 a100 Dependency
    12 700 a100 QOSMaxJobsPerUserLimit
    5 500 a40 Priority
    9 600 a40 Resources
    """
    rows = [line.split() for line in queue.split("\n") if line.strip()]
    pending = [PendingJob(job, int(priority), *rest) for job, priority, *rest in rows]
    assert places(pending, {"5", "8", "11"}) == {"5": [Place("a100", 4, 4), Place("a40", 2, 2)]}
    equal = [PendingJob(job, 5, "x", "Priority") for job in ("10", "9")]
    assert places(equal, {"10"}) == {"10": [Place("x", 2, 2)]}
    assert str(Place("a100", 3, 1041)) == "place 3 of 1,041 in the queue of a100"


def test_the_place_takes_one_more_squeue(folder, monkeypatch):
    queued(monkeypatch, _0="Priority", _1="Priority")
    asked = []

    def pending(partitions) -> list[PendingJob]:
        asked.append(list(partitions))
        return [PendingJob(job, 9, "a100", "Priority") for job in ("4", "5")]

    monkeypatch.setattr(queue_place.client, "pending", pending)
    lines, known = overview(folder)
    assert asked == []
    reasons = [line.status.reason for line in with_places(lines, known)]
    assert [reason.endswith("; place 2 of 2 in the queue of a100") for reason in reasons] == [
        *(True, True, False, False)
    ]
    assert asked == [["a100"]]


def test_no_run_waits_no_squeue(folder, monkeypatch):
    queued(monkeypatch)
    monkeypatch.setattr(queue_place.client, "pending", lambda names: pytest.fail("asked"))
    lines, known = overview(folder)
    assert with_places(lines, known) == lines


def test_pending_jobs_are_parsed():
    text = "CLUSTER: x\n12|4294901757|a100|None\n13 | 0 |a40|JobHeldUser\nbroken|x|y|z\n"
    assert read_pending(text) == [
        PendingJob("12", 4294901757, "a100", "None"),
        PendingJob("13", 0, "a40", "JobHeldUser"),
    ]


def test_status_without_an_answer_of_the_queue(folder, monkeypatch, capsys):
    from furnace_hpc import status

    def no_answer(lines, known):
        raise UnavailableError("Slurm does not answer")

    queued(monkeypatch, _0="Priority")
    monkeypatch.setattr(status, "with_places", no_answer)
    lines, _ = status._overview(folder, True)
    assert len(lines) == 4
    assert capsys.readouterr().err == "no places in the queue: Slurm does not answer\n"


def test_status_after_cancel_asks_slurm_again(folder, monkeypatch):
    """The answer of before the cancel is not shown, though it is fresh."""
    calls = queued(monkeypatch, _0="Priority", _1="Priority", _2="Priority", _3="Priority")
    now = [1e6]
    monkeypatch.setattr(
        job_cache, "time", SimpleNamespace(time=lambda: now[0], sleep=lambda seconds: None)
    )
    read_job_cache(folder)
    now[0] += FRESH_S / 2
    read_job_cache(folder)
    assert calls == ["squeue"]
    expire_job_cache(folder)
    monkeypatch.setattr(
        job_cache.client, "queue", lambda users: [Job("5_0", "CANCELLED by 0", "None", "5")]
    )
    known = read_job_cache(folder)
    assert known.queued["5_0"].word == "CANCELLED by 0"
    assert grid_status.overview(folder)[0][0].status.reason == (
        "job 5_0 was cancelled by user id 0 before the run started"
    )
