"""The decision for each run of a submission, from folders as real runs leave them."""

import json
import os
from pathlib import Path

import pytest
from login_study import CODE, LOCAL, begin, dead_holder, end, finish, grid, planned, specs, tree

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.train_config import RunSpec, accumulation_steps
from furnace_hpc.host import end_reasons, lifecycle
from furnace_hpc.host.attempt_spec import AttemptSpec
from furnace_hpc.launch.planning.plan import Action
from furnace_hpc.launch.planning.planner import retry_words
from furnace_hpc.launch.submission import write_specs, write_submission
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.resume_overrides import overridden, read_overrides
from furnace_hpc.runs.snapshot import source
from furnace_hpc.runs.state import RunState

OLD = "01d01d01d01d"
ONE = {"variants": {"base": {}}, "seeds": [0]}


@pytest.fixture
def spec():
    return specs(**ONE)[0]


@pytest.fixture
def folder(tmp_path):
    return GridFolder(tmp_path / "study")


def one(tmp_path, **choices):
    run = planned(tmp_path, grid(**ONE), **choices).runs[0]
    return run.status.state, run.action, run.why


def failed(spec, folder, code=CODE):
    run = begin(spec, folder, code=code)
    assert end(run, "crash") == "fail"
    return run


def test_a_new_run_starts(tmp_path, spec):
    assert one(tmp_path) == (RunState.NEW, Action.START, "")


def test_a_done_run_is_skipped(tmp_path, spec, folder):
    finish(spec, folder)
    assert one(tmp_path) == (RunState.DONE, Action.SKIP, "done")
    assert one(tmp_path, retry=frozenset({"failed"})) == (RunState.DONE, Action.SKIP, "done")
    assert one(tmp_path, new_code=True) == (RunState.DONE, Action.SKIP, "done")


def test_a_done_run_of_other_code_is_stale(tmp_path, spec, folder):
    """It restarts only with `--code new`."""
    finish(spec, folder, code=OLD)
    assert one(tmp_path) == (RunState.DONE, Action.SKIP, f"done, stale: by code {OLD}")
    assert one(tmp_path, new_code=True) == (RunState.DONE, Action.RESTART, "new code")


def test_an_interrupted_run_resumes(tmp_path, spec, folder):
    begin(spec, folder, dead_holder())
    why = "after step 7: its launcher died and reported no end"
    assert one(tmp_path) == (RunState.INTERRUPTED, Action.RESUME, why)
    assert one(tmp_path, new_code=True) == (RunState.INTERRUPTED, Action.RESUME, why)


def test_a_stopped_run_resumes_after_its_last_step(tmp_path, spec, folder):
    end(begin(spec, folder), "stopped", exit_code=85)
    assert one(tmp_path) == (RunState.INTERRUPTED, Action.RESUME, "after step 9: stopped")


def test_a_failed_run_waits_for_retry(tmp_path, spec, folder):
    failed(spec, folder)
    left = (RunState.FAILED, Action.LEAVE, "failed: ValueError: no (--retry failed retries it)")
    assert one(tmp_path) == left
    for word in ("failed", "crash"):
        retried = one(tmp_path, retry=frozenset({word}))
        assert retried == (RunState.FAILED, Action.RETRY, "failed: ValueError: no")


def test_a_running_run_is_left_alone(tmp_path, spec, folder):
    begin(spec, folder)
    expected = (RunState.RUNNING, Action.LEAVE, "attempt 1 is running, step 7")
    assert one(tmp_path) == one(tmp_path, new_code=True, retry=frozenset({"failed"})) == expected
    assert one(tmp_path, code_hash="another code") == expected


def test_a_run_held_on_another_host_is_left_alone(tmp_path, spec, folder):
    begin(spec, folder, lifecycle.holder() | {"host": "node7"})
    assert one(tmp_path)[:2] == (RunState.UNKNOWN, Action.LEAVE)
    assert one(tmp_path, new_code=True)[1] is Action.LEAVE


@pytest.mark.parametrize("how", ["interrupted", "failed"])
def test_an_unfinished_run_keeps_its_code(tmp_path, spec, folder, how):
    if how == "failed":
        failed(spec, folder, code=OLD)
        assert one(tmp_path)[1] is Action.LEAVE  # no retry was requested
        choices = {"retry": frozenset({"failed"})}
    else:
        begin(spec, folder, dead_holder(), code=OLD)
        choices = {}
    with pytest.raises(
        ConfigError, match="1 unfinished run of grid 'study' began with other code"
    ) as error:
        one(tmp_path, **choices)
    assert spec.run_id in str(error.value)
    assert "--code new" in str(error.value)
    assert one(tmp_path, new_code=True, **choices)[1:] == (Action.RESTART, "new code")


def test_the_code_of_a_run_is_its_first_attempts(tmp_path, spec, folder):
    begin(spec, folder, dead_holder(), code=OLD)
    begin(spec, folder, dead_holder(), code=CODE)
    with pytest.raises(ConfigError, match="never changes its code"):
        one(tmp_path)


def test_an_unknown_retry_word_is_refused(tmp_path):
    assert retry_words() == {
        "failed",
        "lost",
        "cancelled",
        *end_reasons.RETRYABLE,
        *end_reasons.FATAL,
    }
    with pytest.raises(
        ConfigError, match="--retry got 'fialed'; did you mean 'failed'\\? \\(valid: cancelled, "
    ):
        one(tmp_path, retry=frozenset({"fialed"}))


def test_fields_outside_the_identity_are_overridden(tmp_path, folder):
    """The run's spec.json stays as it is."""
    first = planned(tmp_path, grid(**ONE))
    write_submission(first)
    write_specs(first)
    path = first.runs[0].folder.spec
    before = path.read_bytes()
    changes = {
        "log_every": 3,
        "evaluation.batch_size": 5,
        "checkpoint_every": 7,
        "resources.nodes": 4,
    }
    again = planned(tmp_path, grid(**ONE | {"variants": {"base": changes}}))
    assert again.runs[0].folder == first.runs[0].folder
    expected = {"log_every": 3, "evaluation.batch_size": 5, "checkpoint_every": 7}
    assert again.runs[0].attempt.overrides == expected
    submission = write_submission(again).path
    assert path.read_bytes() == before
    assert json.loads((submission / "rows.jsonl").read_text())["facts"]["overrides"] == expected
    assert planned(tmp_path, grid(**ONE)).runs[0].attempt.overrides == {}


def resumed(tmp_path, *settings):
    """Return the overrides of the run's next attempt, and the reason in the plan."""
    run = planned(tmp_path, grid(**ONE), resume_with=read_overrides(list(settings))).runs[0]
    return run.attempt.overrides, run.why


def test_resume_with_holds_for_later_attempts(tmp_path, spec, folder):
    def begin_and_stop(overrides):
        end(begin(spec, folder, overrides=overrides), "stopped", exit_code=85)

    # a run that has not begun begins as in the grid
    assert resumed(tmp_path, "deepspeed=zero2") == ({}, "")
    begin_and_stop({})
    overrides, why = resumed(tmp_path, "deepspeed=zero2", "micro_batch_size=4")
    assert overridden(spec.config, overrides).deepspeed.zero_optimization.stage == 2
    # the global batch of 16 stays
    assert accumulation_steps(overridden(spec.config, overrides), 1) == (4, 4)
    assert why.endswith("; resumes with another DeepSpeed file (ZeRO stage 2), micro-batch 4")
    begin_and_stop(overrides)
    assert resumed(tmp_path)[0] == overrides
    assert resumed(tmp_path, "micro_batch_size=8")[0] == overrides | {"micro_batch_size": 8}
    assert resumed(tmp_path, "deepspeed=zero1", "micro_batch_size=null")[0] == {}  # as it began
    assert set(resumed(tmp_path, "deepspeed=zero1")[0]) == {"micro_batch_size"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("deepspeed", "wanted key=value, for example deepspeed=zero2"),
        (
            "steps=3",
            "a started run may only change deepspeed or micro_batch_size",
        ),
        ("deepspeed=zero7", "unknown DeepSpeed file 'zero7'"),
        ("deepspeed=zero0", "that file trains in fp32 and the run began in bf16"),
        ("micro_batch_size=5", "global_batch_size 16 is not micro_batch_size 5 x "),
        ("micro_batch_size=many", "micro_batch_size"),
    ],
)
def test_wrong_resume_with_is_refused(tmp_path, spec, folder, setting, words):
    end(begin(spec, folder), "stopped", exit_code=85)
    with pytest.raises(ConfigError) as error:
        resumed(tmp_path, setting)
    assert words in str(error.value)


def test_resume_with_ignores_runs_that_do_not_resume(tmp_path):
    """They refuse nothing, and get no overrides."""
    rows = {"variants": {"base": {}, "full": {"deepspeed": "zero0"}}, "seeds": [0]}
    base, plain = specs(**rows)
    folder = GridFolder(tmp_path / "study")
    finish(plain, folder)
    end(begin(base, folder), "stopped", exit_code=85)
    plan = planned(tmp_path, grid(**rows), resume_with=read_overrides(["deepspeed=zero2"]))
    assert [run.action for run in plan.runs] == [Action.RESUME, Action.SKIP]
    assert [set(run.attempt.overrides) for run in plan.runs] == [{"deepspeed"}, set()]


@pytest.mark.parametrize("term", ["info_nce", "vicreg"])
def test_a_contrastive_loss_keeps_its_samples(tmp_path, term):
    """The product of micro-batch and number of processes stays as at the start."""
    rows = {"variants": {"base": {f"loss.{term}": 0.5}}, "seeds": [0]}
    end(
        begin(specs(**rows)[0], GridFolder(tmp_path / "study"), world_size=2),
        "stopped",
        exit_code=85,
    )
    four = ClusterProfile(name="c", executor="slurm", processes_per_node=4)

    def resume(*settings):
        overrides = read_overrides(list(settings))
        return planned(tmp_path, grid(**rows), four, resume_with=overrides).runs[0].action

    assert resume() is Action.RESUME  # 16 samples, over two processes or four
    with pytest.raises(
        ConfigError, match=f"{term} depends on .*: 16 when run .* began, now 8. Choose"
    ):
        resume("micro_batch_size=2")


def test_mixup_keeps_its_micro_batch(tmp_path):
    """It pairs samples of one process, so the number of processes may change."""
    base = {"augment.mixup": 0.2, "micro_batch_size": 4}
    rows = {"variants": {"base": base}, "seeds": [0]}
    end(
        begin(specs(**rows)[0], GridFolder(tmp_path / "study"), world_size=2),
        "stopped",
        exit_code=85,
    )
    four = ClusterProfile(name="c", executor="slurm", processes_per_node=4)

    def resume(*settings):
        overrides = read_overrides(list(settings))
        return planned(tmp_path, grid(**rows), four, resume_with=overrides).runs[0].action

    assert resume() is Action.RESUME
    with pytest.raises(ConfigError, match=r"augment\.mixup depends on .*: 4 when .* now 2\. "):
        resume("micro_batch_size=2")


def test_stage_0_and_the_others_cannot_read_each_other(tmp_path):
    fp32 = {"variants": {"base": {"deepspeed": "zero1_fp32"}}, "seeds": [0]}
    begun = specs(**fp32)[0]
    end(begin(begun, GridFolder(tmp_path / "study")), "stopped", exit_code=85)
    with pytest.raises(
        ConfigError,
        match="began at ZeRO stage 1, and that file has stage 0. .* with stage 1, 2 or 3",
    ):
        planned(tmp_path, grid(**fp32), resume_with=read_overrides(["deepspeed=zero0"]))


def test_a_wrong_spec_file_is_refused(tmp_path, spec, folder):
    run = begin(spec, folder, dead_holder())
    run.spec.write_text('{"form')
    with pytest.raises(ConfigError, match="row 'base': .*spec.json is damaged: move the folder"):
        one(tmp_path)
    other = specs(variants={"base": {"steps": 3}}, seeds=[0])[0]
    run.spec.write_text(other.model_dump_json())
    with pytest.raises(ConfigError, match="is the spec of another run: move"):
        one(tmp_path)
    assert RunSpec.model_validate_json(run.spec.read_text()) == other


def test_a_damaged_result_is_refused_in_one_sentence(tmp_path, spec, folder):
    finish(spec, folder).result.write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="row 'base': .*result.json is not a valid result"):
        one(tmp_path)


def test_batch_sizes_are_checked_for_each_row(tmp_path):
    """They must fit the number of ranks in the profile."""
    wide = ClusterProfile(name="wide", executor="slurm", nodes=3, processes_per_node=4)
    with pytest.raises(ConfigError) as error:
        planned(tmp_path, grid(), wide)
    lines = str(error.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "row 'base' and 1 more: global_batch_size 16 is not micro_batch_size 1 x "
    )


def test_shapes_group_runs_by_resources(tmp_path, folder):
    """Runs that are not started are in no shape."""
    changes = {
        "variants": {
            "base": {},
            "full": {"loss.alpha": 1, "resources.nodes": 2},
            "long": {"steps": 3, "resources.timeout_min": 9},
        }
    }
    runs = specs(**changes)
    finish(runs[1], folder)
    plan = planned(
        tmp_path, grid(**changes), ClusterProfile(name="c", executor="slurm", processes_per_node=4)
    )
    shapes = {shape[:4]: rows for shape, rows in plan.shapes.items()}
    assert shapes == {(1, 4, 60, None): [0], (2, 4, 60, None): [2, 3], (1, 4, 9, None): [4, 5]}
    assert plan.counts == {"start": 5, "skip": 1}
    once = 4 * 1 + 2 * 8 * 1 + 2 * 4 * 9 / 60
    assert plan.gpu_hours == pytest.approx((once, 20 * once))
    assert [run.world_size for run in plan.to_do] == [4, 8, 8, 4, 4]


def test_the_spec_of_an_attempt(tmp_path):
    run = planned(tmp_path, grid(**ONE), LOCAL, data_root=Path("relative")).runs[0]
    assert AttemptSpec.from_record(run.attempt.record(job_id="5")) == run.attempt
    assert run.attempt.record() == {
        "code_hash": CODE,
        "attempts_before": 0,
        "snapshot": source().snapshot_hash,
        "max_attempts": 20,
        "max_idle_attempts": 3,
        "max_gpu_hours": None,
        "gpus": 1,
        "signal_delay_s": 120,
        "time_limit_s": None,
        "nodes": 1,
        "processes_per_node": 1,
        "world_size": 1,
        "data_dir": os.path.abspath("relative/tridigits"),  # noqa: PTH100  a link of the user's may stay a link
        "overrides": {},
        "known_attempts": 0,
        "partition": None,
        "stop_after_steps": None,
        "runs_per_node": 1,
        "runs_per_gpu": 1,
        "gpu_sharing": "",
        "weights_fingerprints": {},
    }


def test_planning_changes_no_file(tmp_path):
    changes = {"seeds": [0, 1, 2, 3, 4], "variants": {"base": {}}}
    runs, folder = specs(**changes), GridFolder(tmp_path / "study")
    finish(runs[0], folder)
    begin(runs[1], folder, dead_holder())
    failed(runs[2], folder)
    begin(runs[3], folder)
    before = tree(tmp_path)
    actions = [
        run.action.value
        for run in planned(tmp_path, grid(**changes), retry=frozenset({"failed"})).runs
    ]
    assert actions == ["skip", "resume", "retry", "leave", "start"]
    assert tree(tmp_path) == before
    planned(tmp_path / "nowhere", grid(**changes))
    assert tree(tmp_path) == before


def test_a_resumed_plan_keeps_the_halved_micro_batch(tmp_path):
    """Also if the next submission starts the attempt, not Slurm."""
    spec = specs()[0]
    run = begin(spec, GridFolder(tmp_path / "study"), who=dead_holder())
    word = {"verdict": "oom", "step": 7, "error": "", "unix_s": 1.0, "half_micro_batch_size": 4}
    write_json(run.verdict(1, 0), word)
    assert lifecycle.decide(str(run.path), 1, 1) == "requeue"
    first = planned(tmp_path, grid()).runs[0]
    assert (first.action, first.attempt.overrides) == (Action.RESUME, {"micro_batch_size": 4})
    assert first.attempt.known_attempts == 1
    assert "resumes with micro-batch 4" in first.why
    given = planned(tmp_path, grid(), resume_with={"micro_batch_size": 2}).runs[0]
    assert given.attempt.overrides == {"micro_batch_size": 2}
