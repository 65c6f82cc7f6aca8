"""The cached job list: how often Slurm is queried, and when a job counts as gone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.monitor import job_cache
from furnace_hpc.monitor.job_cache import (
    FRESH_S,
    GONE,
    GONE_AFTER_S,
    IDLE_S,
    MAX_BACK_OFF_S,
    JobCache,
    read_job_cache,
)
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.journal import Submission
from furnace_hpc.slurm.parsing import Job


class Slurm:
    """Replaces squeue, sacct and the clock. Sleeping takes no time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.away, self.calls = 1e6, False, []
        self.queued, self.accounted = [], []  # outputs of squeue and sacct
        patch.setattr(job_cache, "time", SimpleNamespace(time=lambda: self.now, sleep=self.sleep))
        patch.setattr(job_cache.client, "queue", lambda users: self.run("squeue", self.queued))
        patch.setattr(
            job_cache.client,
            "accounting",
            lambda ids: self.run(f"sacct {','.join(ids)}", self.accounted),
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, command: str, output: list[Job] | None) -> list[Job] | None:
        self.calls.append(command)
        if self.away:
            raise UnavailableError("no route")
        return output


@pytest.fixture
def slurm(monkeypatch) -> Slurm:
    return Slurm(monkeypatch)


def job(word: str, job_id: str) -> Job:
    """A job with the name that `submitted` gives it."""
    return Job(job_id, word, "None", job_id.partition("_")[0])


def submitted(folder: GridFolder, count: int) -> list[str]:
    """Submit `count` runs as array 5 with follow-up job 6. Returns the ids of the elements."""
    made = Submission(folder.new_submission())
    (made.path / "rows.jsonl").write_text(
        "".join(f'{{"run_id": "run-{row}"}}\n' for row in range(count))
    )
    for job_id, kind, rows in (("5", "array", list(range(count))), ("6", "follow-up", [])):
        made.note("intent", name=job_id, kind=kind, base=0, rows=rows)
        made.note("submitted", name=job_id, job_id=job_id)
    return [f"5_{row}" for row in range(count)]


def test_one_squeue_and_one_sacct_for_1000_runs(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    ids = submitted(folder, 1000)
    slurm.queued = [job("RUNNING", job_id) for job_id in [*ids, "6", "77"]] + [
        Job("78", "FAILED", "None")
    ]
    now = read_job_cache(folder)
    assert slurm.calls == ["squeue"]
    # live jobs of other grids count, ended jobs do not
    assert (set(now.queued), now.live_jobs) == ({*ids, "6"}, 1002)
    slurm.queued, slurm.accounted = (
        [],
        [job("NODE_FAIL", job_id) for job_id in [*ids, "6", "5_1000"]],
    )
    slurm.sleep(FRESH_S)
    assert read_job_cache(folder).ended.keys() == {*ids, "6"}
    assert slurm.calls == ["squeue", "squeue", "sacct 5,6"]
    slurm.sleep(IDLE_S - 0.1)
    assert read_job_cache(folder).job("5_999") == slurm.accounted[999]
    assert slurm.calls[3:] == []  # no job is queued: the answer stays fresh longer
    slurm.sleep(0.1)
    read_job_cache(folder)
    assert slurm.calls[3:] == ["squeue"]  # sacct runs once per ended job
    for row in range(1000):
        write_json(folder.run(f"run-{row}").result, {})
    slurm.sleep(IDLE_S)
    read_job_cache(folder)
    assert slurm.calls[4:] == []  # all runs are done: no query


def test_must_queries_once_if_no_job_is_in_doubt(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    slurm.queued = [job("PENDING", job_id) for job_id in (*submitted(folder, 2), "6")]
    assert read_job_cache(folder, needs_answer=True).live_jobs == 3
    assert slurm.calls == ["squeue"]


def test_a_job_that_is_submitted_during_a_query(tmp_path, slurm, monkeypatch):
    """Slurm's answer is older than the job. So it does not count as one that lacks the job."""
    folder = GridFolder(tmp_path)
    listed = [*submitted(folder, 2), "6"]

    def queue(users: set[str]) -> list[Job]:
        answer = [job("PENDING", job_id) for job_id in listed]
        if not slurm.calls:
            made = Submission(folder.new_submission())
            (made.path / "rows.jsonl").write_text('{"run_id": "run-2"}\n')
            made.note("intent", name="7", kind="array", base=0, rows=[0])
            made.note("submitted", name="7", job_id="7")
            listed.append("7_0")
        slurm.calls.append("squeue")
        return answer

    monkeypatch.setattr(job_cache.client, "queue", queue)
    first = read_job_cache(folder)
    assert (first.missing, first.job("7_0")) == ({}, None)
    assert set(read_job_cache(folder).queued) == {"5_0", "5_1", "6", "7_0"}
    assert slurm.calls == ["squeue", "sacct 7", "squeue"]


def test_a_job_with_another_name_is_not_ours(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    ids = submitted(folder, 2)
    slurm.queued = [
        job("RUNNING", ids[0]),
        Job(ids[1], "RUNNING", "None", "of a cluster that was reset"),
    ]
    slurm.accounted = [Job(ids[1], "COMPLETED", "exit code 0:0", "of last year")]
    now = read_job_cache(folder)
    assert set(now.queued) == {ids[0]}
    assert now.job(ids[1]) is None


def test_commands_share_an_answer_in_a_file(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    assert read_job_cache(folder) == JobCache()
    # nothing was submitted: no query
    assert (slurm.calls, folder.slurm_cache.exists()) == ([], False)
    slurm.queued = [job("PENDING", job_id) for job_id in (*submitted(folder, 2), "6")]
    first = read_job_cache(folder)
    slurm.sleep(FRESH_S - 0.1)
    assert read_job_cache(folder) == first
    assert slurm.calls == ["squeue"]
    slurm.sleep(0.1)
    assert read_job_cache(folder).answered_unix_s == slurm.now
    folder.slurm_cache.write_text('{"format": "of another version"}')
    assert read_job_cache(folder).queued == first.queued
    assert slurm.calls == ["squeue"] * 3


def test_failures_back_off_and_keep_the_answer(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    slurm.queued = [job("RUNNING", job_id) for job_id in submitted(folder, 1)]
    answered = read_job_cache(folder)
    slurm.away, tries = True, []
    for pause_s in (FRESH_S, 20, 40, 80, 160, MAX_BACK_OFF_S, MAX_BACK_OFF_S):
        for part_s in (pause_s - 0.5, 0.5):
            slurm.sleep(part_s)
            known = read_job_cache(folder)
            tries.append(known.failures)
            assert (known.queued, known.answered_unix_s) == (
                answered.queued,
                answered.answered_unix_s,
            )
    assert tries == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert known.error == "no route"
    slurm.away = False
    slurm.sleep(MAX_BACK_OFF_S)
    assert (read_job_cache(folder).failures, read_job_cache(folder).error) == (0, "")


def test_must_raises_after_a_second_failure(tmp_path, slurm):
    slurm.away, before = True, slurm.now
    with pytest.raises(UnavailableError, match="no route"):
        read_job_cache(GridFolder(tmp_path), needs_answer=True)
    assert slurm.calls == ["squeue"] * 2
    assert slurm.now > before


@pytest.mark.parametrize(
    "accounted", [None, [], [Job("5_0", "RUNNING", "")]], ids=["off", "empty", "late"]
)
def test_a_job_is_gone_after_two_answers(tmp_path, slurm, accounted):
    folder, slurm.accounted = GridFolder(tmp_path), accounted
    submitted(folder, 1)
    first = read_job_cache(folder)
    assert first.job("5_0") is None
    assert replace(first, answered_unix_s=slurm.now + GONE_AFTER_S - 0.1).job("5_0") is None
    slurm.sleep(FRESH_S)
    assert read_job_cache(folder).job("5_0") == Job("5_0", GONE, "")
    folder.slurm_cache.unlink()
    # `must` waits for the second answer
    assert read_job_cache(folder, needs_answer=True).job("5_0") == Job("5_0", GONE, "")


@pytest.mark.parametrize("broken", ["queued", "accounted"])
def test_an_unreadable_line_makes_no_job_gone(tmp_path, slurm, broken):
    folder = GridFolder(tmp_path)
    submitted(folder, 1)
    setattr(slurm, broken, [Job("", "", "5|0|RUN")])
    for _ in range(3):
        known = read_job_cache(folder, needs_answer=True)
        assert (known.job("5_0"), known.unread) == (None, 1)
        slurm.sleep(FRESH_S)
    assert known.live_jobs == (1 if broken == "queued" else 0)
    setattr(slurm, broken, [])
    assert read_job_cache(folder, needs_answer=True).job("5_0") == Job("5_0", GONE, "")
    setattr(slurm, broken, [Job("", "", "5|0|RUN")])
    slurm.sleep(FRESH_S)
    assert read_job_cache(folder, needs_answer=True).job("5_0") == Job(
        "5_0", GONE, ""
    )  # it was gone before
