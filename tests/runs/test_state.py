"""A run's state and records, read from its own files."""

import json

import pytest
from login_study import begin, dead_holder, end, finish, specs

from furnace_hpc.host import end_reasons, lifecycle
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.metrics import last_record, read_metrics
from furnace_hpc.runs.records.result import read_result
from furnace_hpc.runs.state import END_REASONS, RunState, read_status


@pytest.fixture
def spec():
    return specs()[0]


@pytest.fixture
def folder(tmp_path):
    return GridFolder(tmp_path / "study")


def test_run_without_attempts_is_new(spec, folder):
    assert read_status(folder.run(spec.run_id)).state is RunState.NEW
    begin(spec, folder).attempt(1).unlink()
    assert read_status(folder.run(spec.run_id)).state is RunState.NEW


def test_run_with_a_result_is_done(spec, folder):
    run = finish(spec, folder)
    assert read_status(run).state is RunState.DONE
    assert read_result(run).run_id == spec.run_id
    with pytest.raises(lifecycle.Busy, match="it is done already"):
        lifecycle.begin(str(run.path), {}, dead_holder())
    for attempt in run.attempts.iterdir():
        attempt.unlink()
    assert read_status(run).state is RunState.DONE


def test_live_holder_is_running(spec, folder):
    status = read_status(begin(spec, folder))
    assert (status.state, status.attempt, status.step) == (RunState.RUNNING, 1, 7)


def test_dead_holder_is_interrupted(spec, folder):
    status = read_status(begin(spec, folder, dead_holder()))
    assert (status.state, status.reason) == (
        RunState.INTERRUPTED,
        "its launcher died and reported no end",
    )


def test_holder_on_another_host_is_unknown(spec, folder):
    status = read_status(begin(spec, folder, lifecycle.holder() | {"host": "node7"}))
    assert (status.state, status.reason) == (
        RunState.UNKNOWN,
        "runs on node7, which this host cannot see; if it is gone: --retry lost",
    )


@pytest.mark.parametrize(
    ("words", "state", "reason"),
    [
        (("stopped", "stopped"), RunState.INTERRUPTED, "stopped"),
        ((), RunState.INTERRUPTED, "no rank started (exit code 1)"),
        (("entered", "entered"), RunState.INTERRUPTED, "a rank reported no end (exit code 1)"),
        (("crash", "peer_lost"), RunState.FAILED, "ValueError: no"),
    ],
)
def test_end_reason_gives_the_state(spec, folder, words, state, reason):
    run = begin(spec, folder)
    end(run, *words)
    status = read_status(run)
    assert (status.state, status.reason) == (state, reason)
    assert status.step == (9 if words else 7)


def test_unknown_reason_is_not_failed(spec, folder):
    run = begin(spec, folder)
    end(run, "stopped")
    record = json.loads(run.attempt(1).read_text())
    run.attempt(1).write_text(json.dumps(record | {"reason": "moonquake"}))
    assert read_status(run).state is RunState.UNKNOWN


def test_every_end_reason_has_a_state():
    assert {reason for reason, rule in END_REASONS.items() if rule.is_retried} == set(
        end_reasons.RETRYABLE
    )
    assert {reason for reason, rule in END_REASONS.items() if rule.state is RunState.FAILED} == set(
        end_reasons.FATAL
    )
    assert set(END_REASONS) == {
        *end_reasons.RETRYABLE,
        *end_reasons.FATAL,
        "done",
        "canary",
        "cancelled",
    }
    assert set(end_reasons.RETRYABLE) - set(lifecycle.REQUEUED) == {"killed"}


def write(run: RunFolder, attempt: int, *records: dict, torn: str = "") -> None:
    path = run.metrics(attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + torn)


def test_highest_attempt_counts_for_a_step(tmp_path):
    run = RunFolder(tmp_path)
    write(run, 2, {"step": 4, "kind": "train", "x": 24}, {"step": 6, "kind": "train", "x": 26})
    write(
        run,
        1,
        *({"step": step, "kind": "train", "x": 10 + step} for step in (2, 4)),
        {"step": 4, "kind": "val", "x": 1},
    )
    write(run, 10, {"step": 6, "kind": "train", "x": 106})
    assert [(r["step"], r["kind"], r["x"], r["attempt"]) for r in read_metrics(run)] == [
        (2, "train", 12, 1),
        (4, "train", 24, 2),
        (4, "val", 1, 1),
        (6, "train", 106, 10),
    ]


@pytest.mark.parametrize(
    "torn",
    ['{"step": 4, "ki', '{"step": 4}', "[1]", "\x00\x00", "\n\n", '{"step": "4", "kind": "train"}'],
)
def test_torn_or_foreign_last_line_is_skipped(tmp_path, torn):
    run = RunFolder(tmp_path)
    write(run, 1, {"step": 2, "kind": "train"}, {"step": 3, "kind": "val"}, torn=torn)
    assert [record["step"] for record in read_metrics(run)] == [2, 3]
    assert last_record(run.metrics(1)) == {"step": 2, "kind": "train"}


def test_last_record_of_a_long_file(tmp_path):
    run = RunFolder(tmp_path)
    write(run, 1, *({"step": step, "kind": "train", "pad": "x" * 100} for step in range(1000)))
    assert last_record(run.metrics(1))["step"] == 999
    assert last_record(run.metrics(2)) is None
