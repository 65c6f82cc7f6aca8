"""Plans with canaries and measured time limits, over invented runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from login_study import CODE, begin, end, finish, grid, planned, specs
from measured_runs import measured

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.follow_up import plan_next_stage, remaining_rows
from furnace_hpc.launch.measured import history
from furnace_hpc.launch.measured.kinds import Kind, cost_key
from furnace_hpc.launch.planning.plan import Action, Plan, Scope
from furnace_hpc.launch.submission import read_scope, write_submission
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.journal import Submission
from furnace_hpc.runs.records.attempts import Attempt

SLURM = ClusterProfile(name="site", executor="slurm", gpu_flag=None, timeout_min=240)
# Two kinds: rows `wide` cost more. A loss weight that changes costs nothing.
ROWS = {
    "base": {"loss.alpha": 0.1},
    "weight": {"loss.alpha": 0.7},
    "rate": {"loss.alpha": 0.1, "optimizer.lr": 1e-4, "model.dropout": 0.5},
    "wide": {"loss.alpha": 0.1, "model.width": 128},
}
AUTO = {"timeout_min": "auto"}


def study(**changes: Any) -> Grid:
    base = {"deepspeed": "zero1", "steps": 1000, "global_batch_size": 16}
    return grid(**({"variants": ROWS, "base": base} | changes))


def of(asked: Grid) -> dict[str, Any]:
    return {
        f"{spec.variant}-{spec.config.seed}": spec
        for spec in specs(**{key: getattr(asked, key) for key in ("base", "variants", "seeds")})
    }


def actions(plan: Plan) -> dict[str, str]:
    return {f"{run.spec.variant}-{run.spec.config.seed}": run.action.value for run in plan.runs}


def whys(plan: Plan) -> dict[str, str]:
    return {f"{run.spec.variant}-{run.spec.config.seed}": run.why for run in plan.runs}


def limits(plan: Plan) -> dict[str, int]:
    return {
        f"{run.spec.variant}-{run.spec.config.seed}": run.shape.timeout_min for run in plan.to_do
    }


def test_kinds_are_found_only_if_a_run_was_measured(tmp_path, monkeypatch):
    """A plan of new runs needs no kinds, and has no forecast."""
    asked, found = study(seeds=[0]), []
    kinds_of = history.kinds_of
    monkeypatch.setattr(history, "kinds_of", lambda *what: found.append(what) or kinds_of(*what))
    plan = planned(tmp_path, asked, profile=SLURM)
    assert (plan.forecast, plan.notes, found) == (None, (), [])
    begin(of(asked)["base-0"], GridFolder(tmp_path / "study"))
    planned(tmp_path, asked, profile=SLURM)
    assert len(found) == 1


def test_what_decides_the_cost():
    found = of(study())
    keys = {name: cost_key(spec.config) for name, spec in found.items()}
    assert keys["base-0"] == keys["base-1"] == keys["weight-0"] == keys["rate-0"]
    assert keys["wide-0"] != keys["base-0"]
    base = found["base-0"].config
    same = {"steps": 9, "log_every": 3, "seed": 7, "checkpoint_every": 5}
    assert cost_key(base.model_copy(update=same)) == keys["base-0"]
    for other in ({"global_batch_size": 8}, {"compile": True}, {"micro_batch_size": 4}):
        assert cost_key(base.model_copy(update=other)) != keys["base-0"]
    loss = base.loss.model_copy(update={"alpha": 0.0})
    assert cost_key(base.model_copy(update={"loss": loss})) != keys["base-0"]


def test_one_canary_per_kind(tmp_path):
    plan = planned(tmp_path, study(), SLURM, canary=True)
    start, wait = Action.START.value, Action.WAIT.value
    expected = dict.fromkeys(actions(plan), wait) | {"base-0": start, "wide-0": start}
    assert actions(plan) == expected
    canary = plan.to_do[0]
    assert canary.attempt.stop_after_steps == 20
    assert canary.attempt.overrides == {"log_every": 4}
    assert canary.shape.timeout_min == 30
    assert canary.attempt.time_limit_s == 1800
    assert canary.why.endswith("canary: stops after 20 steps")
    assert whys(plan)["weight-1"] == f"waits for the canary {canary.folder.run_id}"
    assert plan.num_later == 6
    # A canary's limit is never above the grid's.
    short = planned(tmp_path, study(resources={"timeout_min": 7}), SLURM, canary=True)
    assert limits(short) == {"base-0": 7, "wide-0": 7}


def test_a_single_run_needs_no_canary(tmp_path):
    plan = planned(tmp_path, study(seeds=[0]), SLURM, canary=True)
    assert actions(plan)["wide-0"] == actions(plan)["base-0"] == Action.START.value
    assert {run.spec.variant: run.attempt.stop_after_steps for run in plan.to_do} == {
        "base": 20,
        "wide": None,
    }


def test_the_rest_follows_a_measured_canary(tmp_path):
    """Limits follow from the measurement. A number in the grid is the most that they can be."""
    asked, folder = study(), GridFolder(tmp_path / "study")
    facts = {"job_id": "5_0", "stop_after_steps": 20, "code_hash": CODE}
    for name in ("base-0", "wide-0"):
        measured(of(asked)[name], folder, 20, "canary", 0.5 if name == "base-0" else 2.0, **facts)
    plan = planned(tmp_path, asked, SLURM, canary=True)
    assert plan.num_later == 0
    assert actions(plan)["base-0"] == Action.RESUME.value
    assert all(run.attempt.stop_after_steps is None for run in plan.to_do)
    # (12 + 1000 x 0.5 + 9 x 3) s x 1.15, x 1.25, + 180 s: 15.9 min. The grid allows 60.
    assert limits(plan) == {
        "base-0": 20,
        "base-1": 20,
        "weight-0": 20,
        "weight-1": 20,
        "rate-0": 20,
        "rate-1": 20,
        "wide-0": 60,
        "wide-1": 60,
    }
    assert plan.to_do[0].attempt.time_limit_s == 1200
    assert plan.forecast is not None
    assert plan.forecast.runs[plan.to_do[1].folder.run_id].seconds == (
        pytest.approx(539 * 0.85),
        pytest.approx(539),
        pytest.approx(539 * 1.15),
    )
    text = "\n".join(plan.notes)
    assert "time limit 20 min: start 12 s, 0.5 s per step, save 2 s, peak 5.25 GiB" in text
    assert "earliest end in" in text


def test_forecast_of_runs_that_share_nodes(tmp_path):
    """Four runs at a time on one node need a quarter of the node-hours, and end sooner."""
    asked = study(variants={"base": ROWS["base"]}, seeds=list(range(9)))
    facts = {"job_id": "5_0", "stop_after_steps": 20, "code_hash": CODE}
    found = []
    for count in (1, 4):
        place = tmp_path / str(count)
        folder, facts = GridFolder(place / "study"), facts | {"runs_per_node": count}
        measured(of(asked)["base-0"], folder, 20, "canary", 0.5, **facts)
        site = SLURM.model_copy(update={"array_parallelism": 2, "runs_per_node": count})
        found.append(planned(place, asked, site).forecast)
        other = site.model_copy(update={"runs_per_node": 2})
        assert planned(place, asked, other).forecast is None, "measured with other neighbours"
    alone, shared = found
    assert alone is not None
    assert shared is not None
    assert (alone.parallel, shared.parallel) == ((2,), (8,))
    assert shared.total("nodes").mid == pytest.approx(alone.total("nodes").mid / 4)
    assert shared.elapsed.mid < alone.elapsed.mid / 2


def test_auto_without_history_says_so(tmp_path):
    plan = planned(tmp_path, study(resources=AUTO), SLURM)
    assert set(limits(plan).values()) == {240}
    assert plan.notes == (
        "time limit of 8 runs: 240 min, as no run of that kind was measured (timeout_min in the "
        "grid or in profile site)",
    )
    assert plan.forecast is None
    capped = planned(tmp_path, study(resources=AUTO), SLURM, longest_min=lambda _: 90)
    assert set(limits(capped).values()) == {90}


def test_auto_uses_the_history_of_the_grid(tmp_path):
    """A run that is done with other settings counts too, and one on another shape does not."""
    asked, folder = study(resources=AUTO), GridFolder(tmp_path / "study")
    tmp_path.chmod(0o700)
    pilot = study(resources=AUTO, base=asked.base | {"steps": 40})
    write_submission(planned(tmp_path, pilot, SLURM))
    done = of(pilot)["base-0"]
    measured(done, folder, 40, job_id="5_0", partition=None)
    measured(of(pilot)["wide-0"], folder, 40, job_id="5_1", partition="other")
    plan = planned(tmp_path, asked, SLURM)
    assert limits(plan)["base-0"] == limits(plan)["rate-1"] == 20
    assert limits(plan)["wide-0"] == 240
    local = planned(tmp_path, asked)
    assert local.forecast is None, "a run on Slurm tells nothing about this machine"


def test_other_machines_measure_nothing():
    kind = Kind(2, 4, "gpu", "{}")
    there = ClusterProfile(name="site", executor="slurm", cluster_name="one")
    content = {"attempt": 1, "world_size": 8, "nodes": 2, "job_id": "5", "partition": "gpu"}
    attempt = Attempt.model_validate(content | {"cluster": "one"})
    assert kind.has_measured(attempt, there)
    assert not kind.has_measured(attempt, there.model_copy(update={"cluster_name": "two"}))
    assert not kind.has_measured(attempt, ClusterProfile(name="local", executor="local"))
    others = ({"world_size": 4}, {"nodes": 1}, {"job_id": None}, {"partition": "cpu"})
    for other in (*others, {"runs_per_node": 2}, {"runs_per_gpu": 2}):
        assert not kind.has_measured(attempt.model_copy(update=other), there)


def test_a_site_limit_needs_several_attempts(tmp_path):
    asked, folder = study(resources=AUTO), GridFolder(tmp_path / "study")
    measured(of(asked)["wide-0"], folder, 20, "time_limit", 5.0, job_id="5_0", code_hash=CODE)
    plan = planned(tmp_path, asked, SLURM, longest_min=lambda _: 30)
    assert limits(plan)["wide-0"] == limits(plan)["wide-1"] == 30
    assert [line for line in plan.notes if "attempts" in line] == [
        # 5,027 s of steps and evaluations, in parts of 1,800 - 180 - 12 s
        "2 runs: the limit is 30 min, so about 4 attempts are expected",
    ]
    slow = planned(tmp_path, asked, SLURM, longest_min=lambda _: 10)
    (line,) = [line for line in slow.notes if "attempts" in line]
    # 1.25 x 1.15 x (12 + 100 x 5 + 3) s + 180 s
    assert line.endswith(
        "A start and 100 steps up to a checkpoint need 16 min: lower checkpoint_every, or use "
        "another partition"
    )


def failed(asked: Grid, folder: GridFolder) -> str:
    """The canary of the first kind ends with an exception. Return its id."""
    run = begin(of(asked)["base-0"], folder, stop_after_steps=20)
    end(run, "crash", error="ValueError: no such column")
    return run.run_id


def test_a_failed_canary_holds_its_kind_back(tmp_path):
    asked, folder = study(), GridFolder(tmp_path / "study")
    run_id = failed(asked, folder)
    plan = planned(tmp_path, asked, SLURM, canary=True)
    assert {name for name, action in actions(plan).items() if action == "start"} == {"wide-0"}
    assert whys(plan)["weight-0"] == (
        f"held back, because the canary {run_id} failed: ValueError: no such column"
    )
    assert plan.notes == (
        f"the canary {run_id} failed: ValueError: no such column. 5 runs of its kind are held "
        "back. Correct the cause, or start the canary again with --retry failed",
    )
    again = planned(tmp_path, asked, SLURM, canary=True, retry=frozenset({"failed"}))
    assert actions(again)["base-0"] == Action.RETRY.value
    assert again.to_do[0].attempt.stop_after_steps == 20
    plain = planned(tmp_path, asked, SLURM)
    assert plain.counts == {"leave": 1, "start": 7}
    assert plain.notes == (
        f"the canary {run_id} failed: ValueError: no such column. 5 runs of its kind start now, "
        "as --canary is not given",
    )
    finish(of(asked)["weight-0"], folder)
    after = planned(tmp_path, asked, SLURM, canary=True)
    assert not [why for why in whys(after).values() if "held back" in why]


def test_half_of_the_micro_batch_fits_the_rest(tmp_path):
    """The canary ran out of memory, and its second attempt had half of the micro-batch."""
    asked, folder = study(), GridFolder(tmp_path / "study")
    half = {"micro_batch_size": 8, "log_every": 4}
    run = measured(of(asked)["base-0"], folder, 20, "canary", code_hash=CODE, overrides=half)
    second = lifecycle.read_attempt(str(run.path), 1)
    first = second | {"reason": "oom_halved", "next_overrides": {"micro_batch_size": 8}, "step": 0}
    write_json(run.attempt(2), second | {"attempt": 2})
    write_json(run.attempt(1), first | {"overrides": {"log_every": 4}})
    run.metrics(1).rename(run.metrics(2))
    plan = planned(tmp_path, asked, canary=True)
    sizes = {
        name: run.attempt.overrides.get("micro_batch_size")
        for name, run in zip(actions(plan), plan.runs, strict=True)
    }
    assert sizes == dict.fromkeys(sizes, 8) | {"wide-0": None, "wide-1": None}
    assert "log_every" not in plan.runs[0].attempt.overrides


def submitted(path: Path, asked: Grid) -> Submission:
    """A submission of canaries."""
    path.chmod(0o700)
    plan = planned(path, asked, SLURM, canary=True)
    scope = Scope([*asked.variants], list(map(str, asked.seeds)), str(path / "data"), True)
    return write_submission(replace(plan, scope=scope._replace(canary=True)))


def test_the_follow_up_job_sends_the_rest(tmp_path):
    asked, folder = study(), GridFolder(tmp_path / "study")
    submission = submitted(tmp_path, asked)
    scope = read_scope(submission)
    assert scope is not None
    assert scope.canary
    assert [row.run_id for row in submission.rows if row.to_do] == [
        of(asked)[name].run_id for name in ("base-0", "wide-0")
    ]
    facts = {"job_id": "5_0", "stop_after_steps": 20}
    code = submission.rows[0].attempt
    facts |= {"code_hash": code.code_hash, "snapshot": code.snapshot}
    measured(of(asked)["base-0"], folder, 20, "canary", **facts)
    crashed = begin(of(asked)["wide-0"], folder, code=code.code_hash, stop_after_steps=20)
    end(crashed, "crash", error="ValueError: no such column")
    resolver = observe(folder)
    assert remaining_rows(submission, folder, 2, resolver) == {}
    plan = plan_next_stage(submission, folder, resolver)
    assert plan is not None
    expected = dict.fromkeys(actions(plan), "start")
    assert actions(plan) == expected | {"base-0": "resume", "wide-0": "leave", "wide-1": "wait"}
    assert set(limits(plan).values()) == {20}
    assert "held back" in whys(plan)["wide-1"]
    assert plan.scope is not None
    assert plan.scope.canary
    second = write_submission(plan)
    assert (second.path / "forecast.json").exists()
    # The next follow-up job finds nothing new to start.
    for name in ("base-0", "base-1", "weight-0", "weight-1", "rate-0", "rate-1"):
        finish(of(asked)[name], folder, code.code_hash)
    last = plan_next_stage(second, folder, observe(folder))
    assert last is not None
    assert last.to_do == []
