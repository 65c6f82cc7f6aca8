"""Runs that start from the weights of others: they wait, and then they have these weights."""

import json
from pathlib import Path

import pytest
import torch
from local_study import submit
from planned_study import planned
from tables_study import GRID, fail, finish
from tuned_study import PRINTS

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.engine.checkpoint.shards import whole_weights
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.follow_up import plan_next_stage
from furnace_hpc.launch.planning.plan import Action, Plan
from furnace_hpc.launch.submission import read_scope, write_submission
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.records.weights import fingerprint_of

CHAIN = {
    "base": {},
    "text": {"model.modalities": ["text"]},
    "fused": {"init_from": {"variant": "text", "parts": ["encoders.text"]}},
    "tuned": {"init_from": {"variant": "fused"}, "optimizer.lr": 1e-4},
}


def grid() -> Grid:
    return Grid.model_validate(GRID | {"seeds": [0, 1], "variants": CHAIN})


def plan(path: Path, *rows: str) -> Plan:
    """The plan of `submit`."""
    return planned(path, grid(), *rows)


def actions(found: Plan) -> dict[str, str]:
    """Row and seed -> what is done with it."""
    return {f"{run.spec.variant}-{run.spec.config.seed}": run.action.value for run in found.runs}


def specs() -> dict[str, RunSpec]:
    return {f"{run.variant}-{run.config.seed}": run for run in expand(grid(), PRINTS)}


def interrupt(spec: RunSpec, folder: GridFolder) -> None:
    """Write the run folder of a run that was stopped after some steps."""
    run = folder.run(spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    number = lifecycle.begin(str(run.path), {})
    record = lifecycle.read_attempt(str(run.path), number)
    times = {"start_unix_s": 1000.0, "end_unix_s": 1036.0}
    write_json(run.attempt(number), record | times | {"reason": "stopped", "step": 2})


def reasons(found: Plan) -> dict[str, str]:
    return {run.spec.variant: run.why for run in found.runs if run.action is Action.WAIT}


def test_a_run_waits_until_its_source_is_done(tmp_path):
    folder, run = GridFolder(tmp_path / "study"), specs()
    first = plan(tmp_path)
    wait, start, skip = Action.WAIT.value, Action.START.value, Action.SKIP.value
    assert actions(first)["base-0"] == actions(first)["text-1"] == start
    assert actions(first)["fused-0"] == actions(first)["tuned-1"] == wait
    assert first.num_later == 4
    assert first.scope is not None
    assert reasons(first)["fused"] == (
        f"needs the weights of {run['text-1'].run_id} (trained first)"
    )
    finish(run["text-0"], folder)
    second = actions(plan(tmp_path))
    assert (second["text-0"], second["fused-0"], second["fused-1"]) == (skip, start, wait)
    assert second["tuned-0"] == wait


def test_a_failed_source_holds_its_rows_back(tmp_path):
    folder, run = GridFolder(tmp_path / "study"), specs()
    fail(run["text-0"], folder, "FloatingPointError: the loss is nan")
    found = plan(tmp_path)
    assert actions(found)["fused-0"] == Action.WAIT.value
    why = next(run.why for run in found.runs if run.spec.run_id == specs()["fused-0"].run_id)
    assert why.startswith(f"needs the weights of {run['text-0'].run_id} (failed: ")
    assert "the loss is nan" in why


def test_a_failure_is_named_through_a_chain(tmp_path):
    folder, run = GridFolder(tmp_path / "study"), specs()
    fail(run["text-0"], folder, "FloatingPointError: the loss is nan")
    found = {one.spec.run_id: one.why for one in plan(tmp_path).runs}
    middle, first = run["fused-0"].run_id, run["text-0"].run_id
    assert found[run["tuned-0"].run_id].startswith(
        f"needs the weights of {middle} (needs the weights of {first} (failed: "
    )


def test_a_run_that_resumes_waits_too(tmp_path):
    """Each of its attempts reads the source, which is trained again or was moved away."""
    folder, run = GridFolder(tmp_path / "study"), specs()
    interrupt(run["fused-0"], folder)
    assert actions(plan(tmp_path))["fused-0"] == Action.WAIT.value
    finish(run["text-0"], folder)
    assert actions(plan(tmp_path))["fused-0"] == Action.RESUME.value


def test_a_follow_up_job_retries_no_run_twice(tmp_path):
    """Whether a run that it started is retried was decided before, by the profile's `retries`."""
    tmp_path.chmod(0o700)
    folder, run = GridFolder(tmp_path / "study"), specs()
    finish(run["text-0"], folder)
    first = write_submission(plan(tmp_path))
    interrupt(run["fused-0"], folder)
    found = plan_next_stage(first, folder, observe(folder))
    assert found is not None
    assert run["fused-0"].run_id not in {one.spec.run_id for one in found.to_do}


def test_a_source_that_is_not_chosen_is_named(tmp_path):
    found = plan(tmp_path, "base", "fused")
    run_id = specs()["text-1"].run_id
    assert reasons(found) == {
        "fused": f"needs the weights of {run_id} (not done. Choose its row too)"
    }
    finish(specs()["text-1"], GridFolder(tmp_path / "study"))
    assert actions(plan(tmp_path, "base", "fused"))["fused-1"] == Action.START.value


def test_a_follow_up_job_names_a_failed_source(tmp_path):
    tmp_path.chmod(0o700)
    folder, run = GridFolder(tmp_path / "study"), specs()
    first = write_submission(plan(tmp_path))
    fail(run["text-0"], folder, "FloatingPointError: the loss is nan")
    found = plan_next_stage(first, folder, observe(folder))
    assert found is not None
    why = next(one.why for one in found.runs if one.spec.run_id == run["fused-0"].run_id)
    assert why.startswith(f"needs the weights of {run['text-0'].run_id} (failed: ")


def test_a_follow_up_job_finds_older_data(tmp_path, monkeypatch):
    """The first row of a chain was trained before, on data that no later row uses."""
    tmp_path.chmod(0o700)
    rows = CHAIN | {"text": CHAIN["text"] | {"data.name": "mmimdb"}}
    monkeypatch.setitem(CHAIN, "text", rows["text"])
    monkeypatch.setitem(PRINTS, "mmimdb", "beefbeefbeefbeef")
    folder, run = GridFolder(tmp_path / "study"), specs()
    write_submission(plan(tmp_path, "text"))
    for name in ("text-0", "text-1"):
        finish(run[name], folder)
    second = write_submission(plan(tmp_path, "fused", "tuned"))
    for name in ("fused-0", "fused-1"):
        finish(run[name], folder)
    found = plan_next_stage(second, folder, observe(folder))
    assert found is not None
    assert {one.spec.variant for one in found.to_do} == {"tuned"}


def test_a_follow_up_job_submits_each_stage(tmp_path):
    tmp_path.chmod(0o700)
    folder, run = GridFolder(tmp_path / "study"), specs()

    def followed(submission):
        found = plan_next_stage(submission, folder, observe(folder))
        assert found is not None
        return found

    first = write_submission(plan(tmp_path))
    assert read_scope(first) is not None
    assert followed(first).to_do == []
    for name in ("base-0", "base-1", "text-0", "text-1"):
        finish(run[name], folder)
    second = followed(first)
    assert [one.spec.run_id for one in second.to_do] == [
        run["fused-0"].run_id,
        run["fused-1"].run_id,
    ]
    after = write_submission(second)
    for name in ("fused-0", "fused-1"):
        finish(run[name], folder)
    third = followed(after)
    assert {one.spec.variant for one in third.to_do} == {"tuned"}
    assert third.scope is None
    assert read_scope(write_submission(third)) is None


TINY = """
name: local
base:
  model: {width: 16, num_heads: 2, feedforward: 32, text_layers: 1}
  deepspeed: zero1_fp32
  steps: 4
  global_batch_size: 8
  evaluation: {every: 2}
  checkpoint_every: 2
seeds: [0]
reference: base
sources: [text]
metric: test/digit/accuracy
variants:
  base: {}
  text: {model.modalities: [text]}
  fused:
    init_from: {variant: text, parts: [encoders.text, norms.text]}
    steps: 1
    optimizer.lr: 1e-12
"""


TWO = [
    "--set=resources.processes_per_node=2",
    "--set=deepspeed=zero3",
    "--set=deepspeed.bf16.enabled=false",
]


@pytest.mark.parametrize("options", [[], pytest.param(TWO, marks=pytest.mark.slow)])
def test_a_queue_trains_the_source_first(tmp_path, small_root, options):
    """With a learning rate of nearly 0 the weights of the source are still there at the end."""
    path = tmp_path / "grid.yaml"
    path.write_text(TINY)
    done = submit(path, small_root, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(trained first)" in done.stdout
    assert "left out, because these rows only give weights to others: text" in done.stdout
    runs = tmp_path / "runs" / "local"
    names = ("text", "fused", "base")
    (source,), (fused,), (base,) = (list(runs.glob(f"{name}-s0-*")) for name in names)
    result = json.loads((fused / "result.json").read_text())
    assert list(result["weights_fingerprints"]) == ["init_from.0"]
    (name,) = result["initial_weights"]
    selected = json.loads((source / "result.json").read_text())["selected_step"]
    assert name == f"{source.name} at step {selected}"
    given = whole_weights(source / "checkpoints" / f"step-{selected}" / "zero")
    taken = whole_weights(fused / "checkpoints" / "step-1" / "zero")
    other = whole_weights(base / "checkpoints" / "step-4" / "zero")
    parts = [name for name in taken if name.startswith(("encoders.text.", "norms.text."))]
    assert len(parts) > 10
    for name in parts:
        torch.testing.assert_close(taken[name], given[name], rtol=0, atol=1e-7)
    assert not torch.allclose(other[parts[0]], given[parts[0]], atol=1e-4)
    rest = [name for name in taken if name.startswith("encoders.image.")]
    assert rest
    table = next((tmp_path / "results").glob("local*/table.csv")).read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["variant", "base", "fused"]
    assert "init_from: none -> " in table[2]
    assert "row text (encoders.text, norms.text)" in table[2]


@pytest.mark.slow
def test_a_queue_replaces_a_row_of_another_start(tmp_path, small_root):
    """The source is made a run of older code with other weights, and the row began with those."""
    path = tmp_path / "grid.yaml"
    path.write_text(TINY)
    assert submit(path, small_root).returncode == 0
    runs = tmp_path / "runs" / "local"
    (source,), (fused,) = (list(runs.glob(f"{name}-s0-*")) for name in ("text", "fused"))
    result = json.loads((source / "result.json").read_text())
    older = result | {"code_hash": "01d01d01", "parameters_sha256": "0" * 64}
    write_json(source / "result.json", older)
    begun = {"init_from.0": fingerprint_of(RunResult.model_validate(older))}
    given = json.loads((fused / "result.json").read_text()) | {"weights_fingerprints": begun}
    write_json(fused / "result.json", given)
    done = submit(path, small_root, "--code=new")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "row text has other weights now" in done.stdout
    assert {place.name for place in (runs / "replaced").iterdir()} == {
        f"{source.name}.1",
        f"{fused.name}.1",
    }
    again = json.loads((fused / "result.json").read_text())["weights_fingerprints"]
    assert again == {"init_from.0": fingerprint_of(RunResult.model_validate(result))}
