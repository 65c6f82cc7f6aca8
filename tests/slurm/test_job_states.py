"""Slurm's words for the state of a job, in each form that squeue and sacct print."""

import pytest

from furnace_hpc.runs.state import RunState
from furnace_hpc.slurm.job_states import MEANINGS, Meaning, Phase, explain_waiting, meaning

# All words in Slurm's manuals, 22.05 to 24.11: short form, long form, phase. The last four have no
# short form.
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
def test_phase_of_each_word_in_each_form(short, long, phase):
    assert meaning(long).phase is Phase(phase)
    assert meaning(long) is meaning(f"{long}+") is meaning(f" {long} ") is MEANINGS[long]
    if short != "-":
        assert meaning(short) is meaning(long)


def test_words_have_different_texts():
    assert [long for long in LONG if not meaning(long).text] == ["RUNNING"]
    said = [meaning(long).text for long in LONG]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize(
    "word", ["CANCELLED by 1000", "CANCELLED by 0", "CANCELLED+", "CANCELLED", "CA", "CA "]
)
def test_cancelled_by_any_user(word):
    assert meaning(word) == Meaning(Phase.ENDED, "cancelled", "cancelled")


def test_held_jobs_have_a_hint():
    held = [long for long in LONG if meaning(long).text.endswith(" to release it")]
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
def test_other_words_are_unknown_and_shown(word):
    found = meaning(word)
    assert (found.phase, found.run_state) == (Phase.UNKNOWN, RunState.UNKNOWN)
    assert repr(word) in found.text


@pytest.mark.parametrize(
    "word", [word.lower() for word in LONG] + ["Pending", "pd", "cancelled by 1000"]
)
def test_lower_case_is_unknown_or_right(word):
    assert meaning(word).phase in (Phase.UNKNOWN, meaning(word.upper()).phase)
    assert meaning(word).run_state in (RunState.UNKNOWN, meaning(word.upper()).run_state)


def test_only_out_of_memory_makes_a_run_failed():
    assert [word for word in MEANINGS if MEANINGS[word].run_state is RunState.FAILED] == [
        "OUT_OF_MEMORY"
    ]
    assert {MEANINGS[word].run_state for word in MEANINGS} == {
        RunState.FAILED,
        RunState.INTERRUPTED,
    }


def test_end_reasons():
    by_reason = {}
    for word in MEANINGS:
        if MEANINGS[word].phase is Phase.ENDED:
            by_reason.setdefault(MEANINGS[word].end_reason, []).append(word)
    assert by_reason == {
        "killed": ["COMPLETED", "FAILED"],
        "time_limit": ["TIMEOUT", "DEADLINE"],
        "preempted": ["PREEMPTED"],
        "node_fail": ["NODE_FAIL"],
        "infrastructure": ["BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"],
        "cancelled": ["CANCELLED"],
        "oom": ["OUT_OF_MEMORY"],
    }


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("None", ""),
        ("(null)", ""),
        ("Resources", " (Resources: it is at the front of the queue and waits for free nodes)"),
        ("SomethingNew", " (SomethingNew)"),
        ("launch_failed_requeued_held", " (launch_failed_requeued_held: run `furnace submit` to"),
        ("Partition_Down", " (Partition_Down: the partition is down; wait for the site)"),
        (
            "DependencyNeverSatisfied",
            " (DependencyNeverSatisfied: it will never run; cancel it)",
        ),
        ("JobHeldUser", " (JobHeldUser: it is held; run `scontrol release JOB` to release it)"),
    ],
)
def test_reasons_of_waiting_jobs(reason, text):
    explained = explain_waiting("PENDING", reason)
    assert explained.startswith(text)
    assert bool(explained) is bool(text)
