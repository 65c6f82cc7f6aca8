"""End reasons from the reports of ranks, the host and Slurm. Budgets that end a run."""

import json
import os
import time

import pytest
from login_study import LOCAL, begin, dead_holder, end, grid, planned, specs

from furnace_hpc.host import budget_limits, end_reasons, lifecycle
from furnace_hpc.launch.planning.plan import Action
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_json
from furnace_hpc.runs.records.verdict import RankVerdict, verdict_of
from furnace_hpc.runs.state import RunState, RunStatus, close_open_attempt, read_status

HERE = lifecycle.holder() | {"host": "node7"}


def verdict(kind: str, unix_s: float = 0, **more) -> dict:
    return {
        "verdict": kind,
        "step": 3,
        "unix_s": unix_s,
        "error": f"{kind} at {unix_s}",
        **more,
    }


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's class."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no"), "crash"),
        (FloatingPointError("the loss is nan"), "nonfinite"),
        (MemoryError(), "oom"),
        (OutOfMemoryError("of a GPU"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (OSError(12, "Cannot allocate memory"), "oom"),
        (OSError(28, "No space left on device"), "io_error"),
        (OSError(2, "No such file or directory"), "crash"),
        (RuntimeError("Connection closed by peer [10.0.0.2]"), "peer_lost"),
    ],
)
def test_exception_gives_a_verdict(tmp_path, error, reason):
    assert verdict_of(error) == reason
    rank = RankVerdict(RunFolder(tmp_path), 1, 0)
    rank.at(12)
    with pytest.raises(type(error)), rank:
        raise error
    [written] = lifecycle.read_verdicts(str(tmp_path), 1)
    assert (written["verdict"], written["step"]) == (reason, 12)
    if reason == "nonfinite":
        assert written["error"] == "step 12: FloatingPointError: the loss is nan"


# (verdicts, record, environment, reason)
JOB, TIMED = {"job_id": "5_0"}, {"job_id": "5_0", "signal_delay_s": 120}
ASKED = TIMED | {"time_limit_s": 9000, "start_unix_s": 1000.0}
ENDS = {"SLURM_JOB_END_TIME": "10000"}
REASONS = [
    ([verdict("crash", 2), verdict("oom", 1)], JOB, {}, "oom"),
    ([verdict("crash", 1), verdict("hang", 0), verdict("entered")], JOB, {}, "crash"),
    ([verdict("hang", 5), verdict("entered")], JOB, {}, "hang"),
    ([verdict("io_error"), verdict("entered")], JOB, {}, "killed"),
    ([verdict("crash"), verdict("io_error")], JOB, {}, "crash"),
    ([verdict("stopped", signal="SIGUSR2")] * 2, JOB, {}, "time_limit"),
    ([verdict("stopped", 9875, signal="SIGUSR2")], TIMED, ENDS, "time_limit"),
    ([verdict("stopped", 9700, signal="SIGUSR2")], TIMED, ENDS, "preempted"),
    # older Slurm versions do not give the end
    ([verdict("stopped", 9875, signal="SIGUSR2")], ASKED, {}, "time_limit"),
    ([verdict("stopped", 9700, signal="SIGUSR2")], ASKED, {}, "preempted"),
    ([verdict("stopped", signal="SIGTERM")], JOB, {}, "preempted"),
    ([verdict("stopped", signal="SIGUSR1")], JOB, {}, "preempted"),
    ([verdict("stopped", signal="SIGHUP")], JOB, {}, "stopped"),
    ([verdict("stopped", signal="SIGTERM")], {"job_id": None}, {}, "stopped"),
    ([verdict("stopped", signal="--canary")] * 2, JOB, {}, "canary"),
    ([verdict("stopped", signal="--canary")], {"job_id": None}, {}, "canary"),
    ([verdict("stopped", signal="--canary"), verdict("oom", 2)], JOB, {}, "oom"),
    (
        [verdict("stopped", signal="SIGTERM"), verdict("stopping", 1, signal="SIGTERM")],
        JOB,
        {},
        "preempted",
    ),
    ([verdict("stopped"), verdict("entered")], JOB, {}, None),
    # a rank died without a report: Slurm may know why
    ([verdict("peer_lost"), verdict("entered")], JOB, {}, None),
    ([verdict("peer_lost")] * 2, JOB, {}, "peer_lost"),
    ([verdict("peer_lost"), verdict("done")], JOB, {}, "peer_lost"),
    ([verdict("peer_lost", 1), verdict("gpu", 2)], JOB, {}, "gpu"),
    ([verdict("gpu", 1), verdict("crash", 2)], JOB, {}, "gpu"),
    ([verdict("gpu", 2), verdict("crash", 1)], JOB, {}, "crash"),
    ([verdict("peer_lost"), verdict("hang"), verdict("entered")], JOB, {}, "hang"),
    ([], JOB, {}, None),
]


@pytest.mark.parametrize(("verdicts", "record", "environment", "reason"), REASONS)
def test_reason_of_ranks(verdicts, record, environment, reason):
    known = end_reasons.reason_of_ranks(verdicts, record, environment)
    assert (known and known[0]) == reason


def test_hang_blames_silent_or_frozen_ranks():
    verdicts = [
        verdict("hang", host="a"),
        verdict("entered", host="b"),
        verdict("entered", host="c"),
        verdict("done", host="d"),
    ]
    assert (
        end_reasons.reason_of_ranks(verdicts, JOB, {})[1]
        == "hang at 0; 2 ranks reported no end: look at their logs first"
    )
    assert end_reasons.suspect_hosts("hang", verdicts) == ["b", "c"]
    assert end_reasons.suspect_hosts("killed", verdicts) == []
    verdicts = [verdict("hang", 1, host="a"), verdict("hang", 2, host="b", frozen=True)]
    assert end_reasons.reason_of_ranks(verdicts, JOB, {}) == ("hang", "hang at 2")
    assert end_reasons.suspect_hosts("hang", verdicts) == ["b"]


def test_broken_gpu_blames_its_host():
    verdicts = [verdict("peer_lost", host="a"), verdict("gpu", host="b"), verdict("entered")]
    assert end_reasons.suspect_hosts("gpu", verdicts) == ["b"]
    assert end_reasons.suspect_hosts("peer_lost", verdicts) == []


def report(run: RunFolder, number: int, *verdicts: dict) -> None:
    for rank, content in enumerate(verdicts):
        write_json(run.verdict(number, rank), content)


@pytest.mark.parametrize(
    ("words", "trained", "reason"),
    [
        ((verdict("stopped", signal="SIGTERM"),), True, "preempted"),
        ((verdict("stopping", signal="SIGUSR2"), verdict("entered")), True, "preempted"),
        ((verdict("crash"),), True, "crash"),
        ((verdict("hang"), verdict("entered")), True, "hang"),
        ((verdict("entered"),), True, "node_fail"),
        ((verdict("entered", step=0),), False, "killed"),
        ((), False, "killed"),
    ],
)
def test_reason_after_slurm_restarted_the_job(tmp_path, words, trained, reason):
    run = RunFolder(tmp_path)
    lifecycle.begin(str(tmp_path), JOB, HERE)
    report(run, 1, *[content | ({} if trained else {"step": 0}) for content in words])
    if trained:
        run.metrics(1).write_text('{"step": 20, "kind": "train"}\n{"step": 40, "ki')
    assert lifecycle.begin(str(tmp_path), JOB, HERE) == 2
    record = lifecycle.read_attempt(str(tmp_path), 1)
    assert (record["reason"], record["step"]) == (reason, 20 if trained else 0)


def test_late_close_takes_the_last_write_as_end(tmp_path):
    lifecycle.begin(str(tmp_path), JOB | {"gpus": 8}, HERE)
    report(RunFolder(tmp_path), 1, verdict("entered"))
    record = lifecycle.read_attempt(str(tmp_path), 1) | {"start_unix_s": time.time() - 80_000}
    write_json(RunFolder(tmp_path).attempt(1), record)
    for path in tmp_path.rglob("*.json*"):
        os.utime(path, (0, time.time() - 72_800))
    lifecycle.close(str(tmp_path), 1, "a node failed", "node_fail")
    closed = lifecycle.read_attempt(str(tmp_path), 1)
    assert (closed["reason"], closed["error"]) == ("node_fail", "a node failed")
    assert budget_limits.gpu_hours([closed], time.time()) == pytest.approx(16.0, abs=0.01)


def test_stack_dump_in_the_log_is_a_hang(tmp_path):
    run = RunFolder(tmp_path)
    lifecycle.begin(str(tmp_path), JOB)
    report(run, 1, verdict("entered"))
    run.log(1, 0).write_text(
        'step 3\nTimeout (0:10:02)!\nThread 0x1 (most recent call first):\n  File "x.py"\n'
    )
    assert lifecycle.decide(str(tmp_path), 1, 1) == "requeue"
    record = lifecycle.read_attempt(str(tmp_path), 1)
    assert record["reason"] == "hang"
    assert record["error"].startswith(
        "its interpreter was stuck; the stacks of its threads are in logs/1-0.log"
    )


def test_slurm_replaces_a_provisional_reason(tmp_path):
    run = RunFolder(tmp_path)
    lifecycle.begin(str(tmp_path), JOB)
    report(run, 1, verdict("entered"))
    lifecycle.decide(str(tmp_path), 1, 137)
    ended = lifecycle.read_attempt(str(tmp_path), 1)["end_unix_s"]
    for job_id, reason in (("6_0", "killed"), ("5_0", "oom")):
        close_open_attempt(run, RunStatus(RunState.FAILED, 1, 3, "out of memory", job_id, "oom"))
        record = lifecycle.read_attempt(str(tmp_path), 1)
        assert (record["reason"], record["end_unix_s"]) == (reason, ended)
    close_open_attempt(
        run, RunStatus(RunState.INTERRUPTED, 1, 3, "a node failed", "5_0", "node_fail")
    )
    assert lifecycle.read_attempt(str(tmp_path), 1)["reason"] == "oom"


def attempts(*steps_and_reasons: tuple[int, str]) -> list[dict]:
    return [{"step": step, "reason": reason} for step, reason in steps_and_reasons]


@pytest.mark.parametrize(
    ("ended", "idle"),
    [
        ([], 0),
        ([(5, "preempted")], 0),
        ([(0, "infrastructure")] * 2, 2),
        ([(5, "preempted"), (5, "hang"), (3, "killed")], 2),
        ([(5, "preempted"), (5, "hang"), (6, "hang"), (6, "node_fail")], 1),
        ([(5, "stopped"), (5, "crash"), (5, "cancelled"), (5, "stopped")], 1),
    ],
)
def test_only_attempts_without_a_new_step_are_idle(ended, idle):
    assert budget_limits.idle_attempts(attempts(*ended)) == idle


def test_budget_message_names_key_and_fix():
    limits = {"max_idle_attempts": 3, "max_attempts": 5, "max_gpu_hours": 10.5}
    idle = attempts(*[(5, "hang")] * 4)
    assert budget_limits.exhausted_budget(idle, limits, 0) == (
        "budget: 3 attempts in a row without a new step "
        "(raise it with --set resources.max_idle_attempts=4 or more)"
    )
    busy = attempts(*[(step, "preempted") for step in range(1, 6)])
    assert (
        budget_limits.exhausted_budget(busy[:4], limits, 0)
        == budget_limits.exhausted_budget(busy, {}, 0)
        == ""
    )
    assert budget_limits.exhausted_budget(busy, limits, 0).startswith(
        "budget: 5 of 5 attempts are used (raise it with --set "
    )
    costly = [
        {"step": 1, "start_unix_s": 100, "end_unix_s": end_s, "gpus": 4} for end_s in (3700, None)
    ]
    assert budget_limits.gpu_hours(costly, 100 + 7200) == 4 + 8
    assert budget_limits.exhausted_budget(costly, limits, 100 + 7200).startswith(
        "budget: 12.0 of 10.5 GPU-hours are used ("
    )
    assert budget_limits.exhausted_budget(costly, limits, 100 + 3600) == ""


def test_exhausted_budget_fails_until_it_is_raised(tmp_path):
    folder, spec = GridFolder(tmp_path / "study"), specs(variants={"base": {}}, seeds=[0])[0]
    for number in (1, 2, 3):
        run = begin(spec, folder, dead_holder())
        record = lifecycle.read_attempt(str(run.path), number) | {
            "max_idle_attempts": 2,
            "max_attempts": 20,
        }
        write_json(run.attempt(number), record)
        answer = end(run, "hang", "entered")
        assert answer == ("fail" if number == 3 else "requeue")
    status = read_status(run)
    exhausted_budget = "budget: 2 attempts in a row without a new step "
    exhausted_budget += "(raise it with --set resources.max_idle_attempts=3 or more)"
    assert (status.state, status.exhausted_budget) == (RunState.FAILED, exhausted_budget)
    assert status.reason.startswith(f"{exhausted_budget}; last: ")
    asked = grid(variants={"base": {"resources.max_idle_attempts": 2}}, seeds=[0])
    for retry in (frozenset(), frozenset({"failed"})):
        [left] = planned(tmp_path, asked, LOCAL, retry=retry).runs
        assert (left.action, left.why) == (Action.LEAVE, exhausted_budget)
    with pytest.raises(lifecycle.Busy, match="budget: 2 attempts in a row"):
        lifecycle.begin(str(run.path), {"max_idle_attempts": 2})
    [more] = planned(tmp_path, grid(variants={"base": {}}, seeds=[0])).runs  # 3 is the default
    assert more.action is Action.RESUME
    assert lifecycle.begin(str(run.path), more.attempt.record()) == 4
    assert json.loads(run.attempt(4).read_text())["max_idle_attempts"] == 3


OOM = verdict("oom", 1, half_micro_batch_size=4)


def test_out_of_memory_is_retried_once_with_half(tmp_path):
    """The next attempt gets the override. An explicit one of the user replaces it."""
    run = begin(specs()[0], GridFolder(tmp_path), who=dead_holder())
    write_json(run.verdict(1, 0), OOM)
    assert lifecycle.decide(str(run.path), 1, 1) == "requeue"
    status = read_status(run)
    assert (status.state, status.end_reason) == (RunState.INTERRUPTED, "oom_halved")
    assert status.reason == "oom at 1; retried with micro_batch_size 4"
    again = begin(specs()[0], GridFolder(tmp_path), who=dead_holder())
    assert lifecycle.read_attempt(str(again.path), 2)["overrides"] == {"micro_batch_size": 4}
    write_json(run.verdict(2, 0), OOM)
    assert lifecycle.decide(str(run.path), 2, 1) == "fail"
    assert read_status(run).state is RunState.FAILED
    given = {"overrides": {"micro_batch_size": 1}, "known_attempts": 2}
    begin(specs()[0], GridFolder(tmp_path), **given)
    assert lifecycle.read_attempt(str(run.path), 3)["overrides"] == {"micro_batch_size": 1}


def test_out_of_memory_elsewhere_is_final(tmp_path):
    """Such as in an evaluation: a smaller micro-batch would not help."""
    run = begin(specs()[0], GridFolder(tmp_path), who=dead_holder())
    assert end(run, "oom", "entered") == "fail"
    assert lifecycle.read_attempt(str(run.path), 1)["reason"] == "oom"


def test_log_of_several_ranks_tells_who_was_stuck(tmp_path):
    """Ranks of a node share a log. One dump of stacks is that of one rank."""
    run = RunFolder(tmp_path)
    lifecycle.begin(str(tmp_path), JOB)
    lines = [json.dumps(verdict("entered", rank=rank, host=f"n{rank}")) for rank in (10, 9, 2)]
    run.verdict(1, 0).write_text("\n".join([*lines, json.dumps(verdict("done", rank=2)), '{"ve']))
    run.log(1, 0).write_text("Timeout (0:10:02)!\nThread 0x1 (most recent call first):\n")
    found = lifecycle.read_verdicts(str(tmp_path), 1)
    assert [(v["rank"], v["verdict"]) for v in found] == [(2, "done"), (9, "hang"), (10, "entered")]
    run.log(1, 0).write_text(
        "[rank10]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran\n"
    )
    found = lifecycle.read_verdicts(str(tmp_path), 1)
    assert [v["verdict"] for v in found] == ["done", "entered", "hang"]
