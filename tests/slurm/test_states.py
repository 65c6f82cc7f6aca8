"""Every word that Slurm writes for a job's state, in each of its forms; and how, and how often, it is asked."""

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
    Evidence,
    gather,
)
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.state import RunState
from furnace_hpc.slurm.client import Job
from furnace_hpc.slurm.job_states import MEANINGS, Meaning, Phase, meaning

# All that Slurm's manuals list, 22.05 to 24.11: compact form, long form, phase. The last four have
# no compact form.
SLURM = """
BF  BOOT_FAIL     ended
CA  CANCELLED     ended
CD  COMPLETED     ended
CF  CONFIGURING   running
CG  COMPLETING    running
DL  DEADLINE      ended
F   FAILED        ended
NF  NODE_FAIL     ended
OOM OUT_OF_MEMORY ended
PD  PENDING       waiting
PR  PREEMPTED     ended
R   RUNNING       running
RD  RESV_DEL_HOLD waiting
RF  REQUEUE_FED   waiting
RH  REQUEUE_HOLD  waiting
RQ  REQUEUED      waiting
RS  RESIZING      running
RV  REVOKED       waiting
SI  SIGNALING     running
SE  SPECIAL_EXIT  waiting
SO  STAGE_OUT     running
ST  STOPPED       running
S   SUSPENDED     running
TO  TIMEOUT       ended
-   LAUNCH_FAILED ended
-   POWER_UP_NODE running
-   RECONFIG_FAIL ended
-   UPDATE_DB     running
"""
WORDS = [line.split() for line in SLURM.split("\n") if line]
LONG = [long for _, long, _ in WORDS]


@pytest.mark.parametrize(("short", "long", "phase"), WORDS, ids=LONG)
def test_every_word_has_its_phase_in_every_form(short, long, phase):
    assert meaning(long).phase is Phase(phase)
    assert meaning(long) is meaning(f"{long}+") is meaning(f" {long} ") is MEANINGS[long]
    if short != "-":
        assert meaning(short) is meaning(long)


def test_every_word_says_what_it_means_and_only_plain_running_says_nothing():
    assert [long for long in LONG if not meaning(long).says] == ["RUNNING"]
    said = [meaning(long).says for long in LONG]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize(
    "word", ["CANCELLED by 1000", "CANCELLED by 0", "CANCELLED+", "CANCELLED", "CA", "CA "]
)
def test_cancelled_is_told_whoever_did_it(word):
    assert meaning(word) == Meaning(Phase.ENDED, "cancelled", "cancelled")


def test_a_held_job_is_told_how_to_let_it_go_on():
    held = [long for long in LONG if meaning(long).says.endswith(" lets it go on")]
    assert held == ["RESV_DEL_HOLD", "REQUEUE_HOLD", "SPECIAL_EXIT"]


@pytest.mark.parametrize(
    "word",
    [
        "FOO",
        "FOO+",
        "",
        " ",
        "?",
        "+",
        "GONE",
        "PENDING,FOO",
        "RUNNINGS",
        "OUT_OF_ME+",
        "by 1000",
        "UNKNOWN",
        "LF",
    ],
)
def test_a_foreign_word_is_unknown_and_stands_in_what_is_said(word):
    found = meaning(word)
    assert (found.phase, found.leaves) == (Phase.UNKNOWN, RunState.UNKNOWN)
    assert repr(word) in found.says


@pytest.mark.parametrize(
    "word", [word.lower() for word in LONG] + ["Pending", "pd", "cancelled by 1000"]
)
def test_a_word_in_lower_case_is_unknown_or_right(word):
    assert meaning(word).phase in (Phase.UNKNOWN, meaning(word.upper()).phase)
    assert meaning(word).leaves in (RunState.UNKNOWN, meaning(word.upper()).leaves)


def test_only_out_of_memory_leaves_a_run_failed():
    assert [word for word in MEANINGS if MEANINGS[word].leaves is RunState.FAILED] == [
        "OUT_OF_MEMORY"
    ]
    assert {MEANINGS[word].leaves for word in MEANINGS} == {RunState.FAILED, RunState.INTERRUPTED}


def test_a_word_of_slurms_is_the_reason_of_an_attempt_that_could_not_say_it():
    by_reason = {}
    for word in MEANINGS:
        if MEANINGS[word].phase is Phase.ENDED:
            by_reason.setdefault(MEANINGS[word].ended, []).append(word)
    assert by_reason == {
        "killed": ["COMPLETED", "FAILED"],
        "time_limit": ["TIMEOUT", "DEADLINE"],
        "preempted": ["PREEMPTED"],
        "node_fail": ["NODE_FAIL"],
        "infrastructure": ["BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"],
        "cancelled": ["CANCELLED"],
        "oom": ["OUT_OF_MEMORY"],
    }


class Slurm:
    """Stands for squeue, sacct and the clock; sleeping takes no time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.away, self.queued, self.told, self.asked = 1e6, False, [], [], []
        patch.setattr(job_cache, "time", SimpleNamespace(time=lambda: self.now, sleep=self.sleep))
        patch.setattr(job_cache.client, "queue", lambda users: self.says("squeue", self.queued))
        patch.setattr(
            job_cache.client,
            "accounting",
            lambda ids: self.says(f"sacct {','.join(ids)}", self.told),
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def says(self, command: str, words: list[Job] | None) -> list[Job] | None:
        self.asked.append(command)
        if self.away:
            raise UnavailableError("no route")
        return words


@pytest.fixture
def slurm(monkeypatch) -> Slurm:
    return Slurm(monkeypatch)


def job(word: str, job_id: str) -> Job:
    """A job under the name that `submitted` gave it."""
    return Job(job_id, word, "None", job_id.partition("_")[0])


def submitted(folder: GridFolder, count: int) -> list[str]:
    """A submission of so many runs as array 5 with follow-up job 6; the ids of its elements."""
    made = Submission(folder.new_submission())
    (made.path / "rows.jsonl").write_text(
        "".join(f'{{"run_id": "run-{row}"}}\n' for row in range(count))
    )
    for job_id, kind, rows in (("5", "array", list(range(count))), ("6", "follow-up", [])):
        made.note("intent", name=job_id, kind=kind, base=0, rows=rows)
        made.note("submitted", name=job_id, job_id=job_id)
    return [f"5_{row}" for row in range(count)]


def test_a_thousand_runs_cost_one_squeue_and_at_most_one_sacct(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    ids = submitted(folder, 1000)
    slurm.queued = [job("RUNNING", job_id) for job_id in [*ids, "6", "77"]] + [
        Job("78", "FAILED", "None")
    ]
    now = gather(folder)
    assert slurm.asked == ["squeue"]
    # other grids' jobs count, those that ended do not
    assert (set(now.queued), now.live_jobs) == ({*ids, "6"}, 1002)
    slurm.queued, slurm.told = [], [job("NODE_FAIL", job_id) for job_id in [*ids, "6", "5_1000"]]
    slurm.sleep(FRESH_S)
    assert gather(folder).ended.keys() == {*ids, "6"}
    assert slurm.asked == ["squeue", "squeue", "sacct 5,6"]
    slurm.sleep(IDLE_S - 0.1)
    assert gather(folder).job("5_999") == slurm.told[999]
    assert slurm.asked[3:] == []  # nothing is queued: Slurm is left alone
    slurm.sleep(0.1)
    gather(folder)
    assert slurm.asked[3:] == ["squeue"]  # how a job ended is asked once
    for row in range(1000):
        write_json(folder.run(f"run-{row}").result, {})
    slurm.sleep(IDLE_S)
    gather(folder)
    assert slurm.asked[4:] == []  # all is done: never again


def test_who_must_know_asks_once_where_no_job_is_in_doubt(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    slurm.queued = [job("PENDING", job_id) for job_id in (*submitted(folder, 2), "6")]
    assert gather(folder, must=True).live_jobs == 3
    assert slurm.asked == ["squeue"]


def test_a_job_of_the_same_id_and_another_name_is_none_of_ours(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    ids = submitted(folder, 2)
    slurm.queued = [
        job("RUNNING", ids[0]),
        Job(ids[1], "RUNNING", "None", "of a cluster that began anew"),
    ]
    slurm.told = [Job(ids[1], "COMPLETED", "exit code 0:0", "of last year")]
    now = gather(folder)
    assert set(now.queued) == {ids[0]}
    assert now.job(ids[1]) is None


def test_commands_given_soon_after_each_other_share_an_answer_through_the_file(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    assert gather(folder) == Evidence()
    # nothing was submitted: nobody is asked
    assert (slurm.asked, folder.slurm_cache.exists()) == ([], False)
    slurm.queued = [job("PENDING", job_id) for job_id in (*submitted(folder, 2), "6")]
    first = gather(folder)
    slurm.sleep(FRESH_S - 0.1)
    assert gather(folder) == first
    assert slurm.asked == ["squeue"]
    slurm.sleep(0.1)
    assert gather(folder).answered_unix_s == slurm.now
    folder.slurm_cache.write_text('{"format": "of another version"}')
    assert gather(folder).queued == first.queued
    assert slurm.asked == ["squeue"] * 3


def test_failures_back_off_and_keep_the_last_answer(tmp_path, slurm):
    folder = GridFolder(tmp_path)
    slurm.queued = [job("RUNNING", job_id) for job_id in submitted(folder, 1)]
    answered = gather(folder)
    slurm.away, tries = True, []
    for pause_s in (FRESH_S, 20, 40, 80, 160, MAX_BACK_OFF_S, MAX_BACK_OFF_S):
        for part_s in (pause_s - 0.5, 0.5):
            slurm.sleep(part_s)
            known = gather(folder)
            tries.append(known.failures)
            assert (known.queued, known.answered_unix_s) == (
                answered.queued,
                answered.answered_unix_s,
            )
    assert tries == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert known.error == "no route"
    slurm.away = False
    slurm.sleep(MAX_BACK_OFF_S)
    assert (gather(folder).failures, gather(folder).error) == (0, "")


def test_who_must_know_is_told_when_a_second_try_fails_too(tmp_path, slurm):
    slurm.away, begun = True, slurm.now
    with pytest.raises(UnavailableError, match="no route"):
        gather(GridFolder(tmp_path), must=True)
    assert slurm.asked == ["squeue"] * 2
    assert slurm.now > begun


@pytest.mark.parametrize(
    "told", [None, [], [Job("5_0", "RUNNING", "")]], ids=["off", "silent", "late"]
)
def test_a_job_is_gone_after_two_answers_some_seconds_apart(tmp_path, slurm, told):
    folder, slurm.told = GridFolder(tmp_path), told
    submitted(folder, 1)
    first = gather(folder)
    assert first.job("5_0") is None
    assert replace(first, answered_unix_s=slurm.now + GONE_AFTER_S - 0.1).job("5_0") is None
    slurm.sleep(FRESH_S)
    assert gather(folder).job("5_0") == Job("5_0", GONE, "")
    folder.slurm_cache.unlink()
    # it waits for the second answer itself
    assert gather(folder, must=True).job("5_0") == Job("5_0", GONE, "")


@pytest.mark.parametrize("broken", ["queued", "told"])
def test_a_line_that_cannot_be_read_makes_no_job_gone(tmp_path, slurm, broken):
    folder = GridFolder(tmp_path)
    submitted(folder, 1)
    setattr(slurm, broken, [Job("", "", "5|0|RUN")])
    for _ in range(3):
        known = gather(folder, must=True)
        assert (known.job("5_0"), known.unread) == (None, 1)
        slurm.sleep(FRESH_S)
    assert known.live_jobs == (1 if broken == "queued" else 0)
    setattr(slurm, broken, [])
    assert gather(folder, must=True).job("5_0") == Job("5_0", GONE, "")
    setattr(slurm, broken, [Job("", "", "5|0|RUN")])
    slurm.sleep(FRESH_S)
    assert gather(folder, must=True).job("5_0") == Job("5_0", GONE, "")  # what was gone stays gone
