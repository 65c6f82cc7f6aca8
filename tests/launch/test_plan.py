"""What a submission decides for each run, from folders as real runs leave them."""

import json
import os
from pathlib import Path

import pytest
from login_study import CODE, LOCAL, begin, dead_holder, end, finish, grid, planned, specs, tree

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.train_config import RunSpec, accumulation_steps
from furnace_hpc.host import end_reasons, lifecycle
from furnace_hpc.launch.plan import Action
from furnace_hpc.launch.planner import retry_words
from furnace_hpc.launch.submission import write_specs, write_submission
from furnace_hpc.runs.folder import GridFolder
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


def test_a_done_run_of_other_code_is_stale_and_restarts_only_when_asked(tmp_path, spec, folder):
    finish(spec, folder, code=OLD)
    assert one(tmp_path) == (RunState.DONE, Action.SKIP, f"done, stale: by code {OLD}")
    assert one(tmp_path, new_code=True) == (RunState.DONE, Action.RESTART, "new code")


def test_an_interrupted_run_resumes(tmp_path, spec, folder):
    begin(spec, folder, dead_holder())
    why = "after step 7: its launcher died without a word"
    assert one(tmp_path) == (RunState.INTERRUPTED, Action.RESUME, why)
    assert one(tmp_path, new_code=True) == (RunState.INTERRUPTED, Action.RESUME, why)


def test_a_stopped_run_resumes_after_its_last_step(tmp_path, spec, folder):
    end(begin(spec, folder), "stopped", exit_code=85)
    assert one(tmp_path) == (RunState.INTERRUPTED, Action.RESUME, "after step 9: stopped")


def test_a_failed_run_is_left_alone_until_a_retry_is_asked(tmp_path, spec, folder):
    failed(spec, folder)
    left = (RunState.FAILED, Action.LEAVE, "failed: ValueError: no (--retry failed tries again)")
    assert one(tmp_path) == left
    for word in ("failed", "crash"):
        retried = one(tmp_path, retry=frozenset({word}))
        assert retried == (RunState.FAILED, Action.RETRY, "failed: ValueError: no")


def test_a_running_run_is_left_alone_whatever_is_asked(tmp_path, spec, folder):
    begin(spec, folder)
    expected = (RunState.RUNNING, Action.LEAVE, "attempt 1 is running, step 7")
    assert one(tmp_path) == one(tmp_path, new_code=True, retry=frozenset({"failed"})) == expected
    assert one(tmp_path, code_hash="another code") == expected


def test_a_run_held_on_another_host_is_left_alone(tmp_path, spec, folder):
    begin(spec, folder, lifecycle.holder() | {"host": "node7"})
    assert one(tmp_path)[:2] == (RunState.UNKNOWN, Action.LEAVE)
    assert one(tmp_path, new_code=True)[1] is Action.LEAVE


@pytest.mark.parametrize("how", ["interrupted", "failed"])
def test_an_unfinished_run_never_changes_code_half_way(tmp_path, spec, folder, how):
    if how == "failed":
        failed(spec, folder, code=OLD)
        assert one(tmp_path)[1] is Action.LEAVE  # nobody asked to go on with it
        choices = {"retry": frozenset({"failed"})}
    else:
        begin(spec, folder, dead_holder(), code=OLD)
        choices = {}
    with pytest.raises(
        ConfigError, match="1 unfinished runs of grid 'study' were begun by another version"
    ) as error:
        one(tmp_path, **choices)
    assert spec.run_id in str(error.value)
    assert "--code new" in str(error.value)
    assert one(tmp_path, new_code=True, **choices)[1:] == (Action.RESTART, "new code")


def test_the_code_of_a_run_is_its_first_attempts(tmp_path, spec, folder):
    begin(spec, folder, dead_holder(), code=OLD)
    begin(spec, folder, dead_holder(), code=CODE)
    with pytest.raises(ConfigError, match="never changes code half-way"):
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


def test_fields_that_are_no_identity_are_overridden_and_the_spec_stays(tmp_path, folder):
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
    assert again.runs[0].facts["overrides"] == expected
    submission = write_submission(again).path
    assert path.read_bytes() == before
    assert json.loads((submission / "rows.jsonl").read_text())["facts"]["overrides"] == expected
    assert planned(tmp_path, grid(**ONE)).runs[0].facts["overrides"] == {}


def resumed(tmp_path, *settings):
    """The overrides of the next attempt of the one run, and why it is planned."""
    run = planned(tmp_path, grid(**ONE), resume_with=read_overrides(list(settings))).runs[0]
    return run.facts["overrides"], run.why


def test_a_begun_run_goes_on_with_another_deepspeed_file_until_it_is_told_otherwise(
    tmp_path, spec, folder
):
    def to_be_begun(overrides):
        end(begin(spec, folder, overrides=overrides), "stopped", exit_code=85)

    # it has not begun: it begins as the grid says
    assert resumed(tmp_path, "deepspeed=zero2") == ({}, "")
    to_be_begun({})
    overrides, why = resumed(tmp_path, "deepspeed=zero2", "micro_batch_size=4")
    assert overridden(spec.config, overrides).deepspeed.zero_optimization.stage == 2
    # the global batch of 16 stays
    assert accumulation_steps(overridden(spec.config, overrides), 1) == (4, 4)
    assert why.endswith("; goes on with another DeepSpeed file (ZeRO stage 2), micro-batch 4")
    to_be_begun(overrides)
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
            "--resume-with steps: a begun run can go on with another deepspeed or micro_batch_size only",
        ),
        ("deepspeed=zero7", "unknown DeepSpeed file 'zero7'"),
        ("deepspeed=zero0", "that file trains in fp32 and the run was begun in bf16"),
        ("micro_batch_size=5", "global_batch_size 16 is not micro_batch_size 5 x "),
        ("micro_batch_size=many", "micro_batch_size"),
    ],
)
def test_what_a_begun_run_cannot_go_on_with_is_refused(tmp_path, spec, folder, setting, words):
    end(begin(spec, folder), "stopped", exit_code=85)
    with pytest.raises(ConfigError) as error:
        resumed(tmp_path, setting)
    assert words in str(error.value)


def test_what_does_not_go_on_refuses_nothing_and_carries_nothing(tmp_path):
    rows = {"variants": {"base": {}, "full": {"deepspeed": "zero0"}}, "seeds": [0]}
    base, plain = specs(**rows)
    folder = GridFolder(tmp_path / "study")
    finish(plain, folder)
    end(begin(base, folder), "stopped", exit_code=85)
    plan = planned(tmp_path, grid(**rows), resume_with=read_overrides(["deepspeed=zero2"]))
    assert [run.action for run in plan.runs] == [Action.RESUME, Action.SKIP]
    assert [set(run.facts["overrides"]) for run in plan.runs] == [{"deepspeed"}, set()]


@pytest.mark.parametrize("term", ["info_nce", "vicreg"])
def test_a_loss_goes_on_with_as_many_samples_as_it_began_with(tmp_path, term):
    rows = {"variants": {"base": {f"loss.{term}": 0.5}}, "seeds": [0]}
    end(
        begin(specs(**rows)[0], GridFolder(tmp_path / "study"), world_size=2),
        "stopped",
        exit_code=85,
    )
    four = ClusterProfile(name="c", executor="slurm", processes_per_node=4)

    def go_on(*settings):
        return (
            planned(tmp_path, grid(**rows), four, resume_with=read_overrides(list(settings)))
            .runs[0]
            .action
        )

    assert go_on() is Action.RESUME  # 16 samples, over two processes or four
    with pytest.raises(
        ConfigError, match=f"{term} compares .*, 16 when run .* began and now 8: give"
    ):
        go_on("micro_batch_size=2")


def test_stage_0_and_the_others_cannot_read_each_other(tmp_path):
    fp32 = {"variants": {"base": {"deepspeed": "zero1_fp32"}}, "seeds": [0]}
    begun = specs(**fp32)[0]
    end(begin(begun, GridFolder(tmp_path / "study")), "stopped", exit_code=85)
    with pytest.raises(
        ConfigError,
        match="begun at ZeRO stage 1, and that file is of stage 0: .* among stages 1, 2, 3",
    ):
        planned(tmp_path, grid(**fp32), resume_with=read_overrides(["deepspeed=zero0"]))


def test_a_spec_that_is_damaged_or_of_another_run_is_refused(tmp_path, spec, folder):
    run = begin(spec, folder, dead_holder())
    run.spec.write_text('{"form')
    with pytest.raises(ConfigError, match="row 'base': .*spec.json is damaged: put the folder"):
        one(tmp_path)
    other = specs(variants={"base": {"steps": 3}}, seeds=[0])[0]
    run.spec.write_text(other.model_dump_json())
    with pytest.raises(ConfigError, match="does not say what its name says: put"):
        one(tmp_path)
    assert RunSpec.model_validate_json(run.spec.read_text()) == other


def test_a_damaged_result_is_refused_in_one_sentence(tmp_path, spec, folder):
    finish(spec, folder).result.write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="row 'base': .*result.json is no result"):
        one(tmp_path)


def test_batch_arithmetic_is_checked_for_each_row_at_the_profiles_shape(tmp_path):
    wide = ClusterProfile(name="wide", executor="slurm", nodes=3, processes_per_node=4)
    with pytest.raises(ConfigError) as error:
        planned(tmp_path, grid(), wide)
    lines = str(error.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "row 'base' and 1 more: global_batch_size 16 is not micro_batch_size 1 x "
    )


def test_shapes_group_by_resources_and_skip_what_is_not_to_do(tmp_path, folder):
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
    assert plan.shapes == {(1, 4, 60, None): [0], (2, 4, 60, None): [2, 3], (1, 4, 9, None): [4, 5]}
    assert plan.counts == {"start": 5, "skip": 1}
    once = 4 * 1 + 2 * 8 * 1 + 2 * 4 * 9 / 60
    assert plan.bill == pytest.approx((once, 20 * once))
    assert [run.world_size for run in plan.to_do] == [4, 8, 8, 4, 4]


def test_facts_are_what_an_attempt_records(tmp_path):
    run = planned(tmp_path, grid(**ONE), LOCAL, data_root=Path("relative")).runs[0]
    assert run.facts == {
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
