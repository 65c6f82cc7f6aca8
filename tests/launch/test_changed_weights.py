"""Runs whose start has changed: a source was trained again, or a folder has other weights."""

import json
from pathlib import Path

import pytest
from encoder_folders import save_network
from planned_study import planned
from tables_study import GRID, finish, notes
from tuned_study import PRINTS

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.follow_up import plan_next_stage
from furnace_hpc.launch.planning.plan import Action, Plan
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.monitor.run_status import observe
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder, write_atomically, write_json
from furnace_hpc.runs.records import weights
from furnace_hpc.runs.records.weights import read_named_weights
from furnace_hpc.tables.collect import collect

CHAIN = {
    "base": {},
    "text": {"model.modalities": ["text"]},
    "fused": {"init_from": {"variant": "text", "parts": ["encoders.text"]}},
    "tuned": {"init_from": {"variant": "fused"}, "optimizer.lr": 1e-4},
}
OLD, NEW = "a" * 64, "b" * 64  # parameters_sha256


def chain(**changes) -> Grid:
    return Grid.model_validate(GRID | {"seeds": [0], "variants": CHAIN} | changes)


def specs(grid: Grid) -> dict[str, RunSpec]:
    return {run.variant: run for run in expand(grid, PRINTS)}


def end(spec: RunSpec, folder: GridFolder, parameters: str = OLD, code: str = "") -> None:
    """Finish a run that began with the weights as they are now."""
    begun = read_named_weights(spec.config, folder)
    changes = {"weights_fingerprints": begun.fingerprints, "parameters_sha256": parameters}
    finish(spec, folder, code_hash=code or code_hash(), **changes)


def decided(found: Plan) -> dict[str, tuple[str, str]]:
    return {run.spec.variant: (run.action.value, run.why) for run in found.runs}


def all_done(path: Path, old: str = "text") -> tuple[GridFolder, dict[str, RunSpec]]:
    """A finished chain, where one row was trained by older code."""
    path.chmod(0o700)
    folder, runs = GridFolder(path / "study"), specs(chain())
    for name, spec in runs.items():
        end(spec, folder, code="01d01d01" if name == old else "")
    return folder, runs


def test_a_row_waits_for_a_source_trained_again(tmp_path):
    """The present code has trained the rows, but not their source."""
    _, runs = all_done(tmp_path)
    found = decided(planned(tmp_path, chain(), new_code=True))
    text, fused = runs["text"].run_id, runs["fused"].run_id
    assert found["text"] == (Action.RESTART.value, "new code")
    assert found["base"] == (Action.SKIP.value, "done")
    replaced = "done, and replaced if its source has other weights then: "
    why = f"{replaced}needs the weights of {text} (trained first)"
    assert found["fused"] == (Action.WAIT.value, why)
    assert found["tuned"] == (
        Action.WAIT.value,
        f"{replaced}needs the weights of {fused} ({why})",
    )
    assert decided(planned(tmp_path, chain()))["fused"] == (Action.SKIP.value, "done")


def test_a_changed_source_replaces_its_chain(tmp_path):
    """The follow-up jobs replace a row, and then the row that starts from it."""
    folder, runs = all_done(tmp_path)
    first = write_submission(planned(tmp_path, chain(), new_code=True))
    assert (folder.replaced / f"{runs['text'].run_id}.1").is_dir()
    end(runs["text"], folder, NEW)
    second = plan_next_stage(first, folder, observe(folder))
    assert second is not None
    assert decided(second)["fused"] == (Action.RESTART.value, "row text has other weights now")
    assert decided(second)["tuned"][0] == Action.WAIT.value
    then = write_submission(second)
    assert (folder.replaced / f"{runs['fused'].run_id}.1").is_dir()
    end(runs["fused"], folder, NEW)
    third = plan_next_stage(then, folder, observe(folder))
    assert third is not None
    assert [run.spec.variant for run in third.to_do] == ["tuned"]


def test_an_equal_source_keeps_its_rows(tmp_path):
    folder, runs = all_done(tmp_path)
    write_submission(planned(tmp_path, chain(), new_code=True))
    end(runs["text"], folder, OLD)
    found = planned(tmp_path, chain(), new_code=True)
    assert {name: action for name, (action, _) in decided(found).items()} == dict.fromkeys(
        CHAIN, Action.SKIP.value
    )


def test_a_deleted_source_is_not_needed_again(tmp_path):
    folder, runs = all_done(tmp_path)
    folder.run(runs["text"].run_id).path.rename(tmp_path / "away")
    found = decided(planned(tmp_path, chain(), "fused", new_code=True))
    assert found["fused"] == (Action.SKIP.value, "done")


def test_a_stale_row_is_named(tmp_path):
    """Without --code new the plan names a stale row, and the table does too."""
    folder, runs = all_done(tmp_path, old="")
    end(runs["text"], folder, NEW)
    found = decided(planned(tmp_path, chain()))
    words = "done, stale: row text has other weights now (--code new trains it again)"
    assert found["fused"] == (Action.SKIP.value, words)
    assert found["tuned"] == (Action.SKIP.value, "done")
    text = notes(collect(chain(), list(runs.values()), folder))
    assert "stale: the source was trained again" in text
    assert runs["fused"].run_id in text
    assert runs["tuned"].run_id not in text.partition("stale: ")[2]


def test_unknown_keys_of_a_result_are_shown(tmp_path):
    """A user has edited the file, or a newer Furnace wrote it."""
    folder, runs = all_done(tmp_path, old="")
    edited = {"init_from.7": OLD[:16], "init_from.x": OLD[:16]}
    finish(runs["base"], folder, code_hash=code_hash(), weights_fingerprints=edited)
    finish(runs["fused"], folder, code_hash=code_hash(), weights_fingerprints={"init_from.x": "b"})
    text = notes(collect(chain(), list(runs.values()), folder))
    assert "the weights of init_from.x None differ between runs" in text


def interrupt(spec: RunSpec, folder: GridFolder) -> None:
    """Write the run folder of a run that was stopped after some steps."""
    run = folder.run(spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    begun = {"weights_fingerprints": read_named_weights(spec.config, folder).fingerprints}
    number = lifecycle.begin(str(run.path), {**begun, "code_hash": code_hash()})
    record = lifecycle.read_attempt(str(run.path), number)
    times = {"start_unix_s": 1000.0, "end_unix_s": 1036.0}
    write_json(run.attempt(number), record | times | {"reason": "stopped", "step": 2})


def test_an_unfinished_run_does_not_mix_weights(tmp_path):
    folder, runs = GridFolder(tmp_path / "study"), specs(chain())
    end(runs["text"], folder, OLD)
    interrupt(runs["fused"], folder)
    assert decided(planned(tmp_path, chain()))["fused"][0] == Action.RESUME.value
    end(runs["text"], folder, NEW)
    action, why = decided(planned(tmp_path, chain()))["fused"]
    assert action == Action.LEAVE.value
    assert why.startswith("row text has other weights than at its start: restore them")
    again = decided(planned(tmp_path, chain(), new_code=True))["fused"]
    assert again == (Action.RESTART.value, "row text has other weights now")


def exported(folder: Path, digest: str) -> None:
    folder.mkdir(exist_ok=True)
    files = {"model.safetensors": [12, digest]}
    (folder / "config.json").write_text(json.dumps({"files": files}))


def encoder(folder: Path, value: str) -> None:
    """An encoder's folder: only the bytes of its files count here."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_text(value)


def finished_run(folder: Path, value: str) -> None:
    (spec,) = expand(Grid.model_validate(GRID | {"seeds": [0], "variants": {"base": {}}}), PRINTS)
    made = finish(spec, GridFolder(folder.parent / "other"), parameters_sha256=value)
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_bytes(made.result.read_bytes())


@pytest.mark.parametrize(
    ("make", "key", "place"),
    [
        (exported, {"init_from": {"model": "PATH"}}, "model PATH"),
        (finished_run, {"init_from": {"run": "PATH"}}, "run PATH"),
        (encoder, {"model.text.encoder": "PATH"}, "model.text.encoder 'PATH'"),
        (encoder, {"model.text_weights": "PATH"}, "model.text_weights 'PATH'"),
    ],
)
def test_a_changed_folder_is_named(tmp_path, make, key, place):
    """One row would average over runs with different initial weights."""
    weights_at = tmp_path / "weights"
    make(weights_at, OLD)
    row = json.loads(json.dumps(key).replace("PATH", str(weights_at)))
    grid = chain(seeds=[0, 1], variants={"base": {}, "given": row})
    folder, runs = GridFolder(tmp_path / "study"), expand(grid, PRINTS)
    first, second = (run for run in runs if run.variant == "given")
    start = planned(tmp_path, grid, "given", seeds=(0,)).to_do[0]
    assert start.attempt.weights_fingerprints
    end(first, folder)
    assert decided(planned(tmp_path, grid, "given", seeds=(0,)))["given"][1] == "done"
    make(weights_at, NEW)
    words = place.replace("PATH", str(weights_at))
    stale = f"done, stale: {words} has other weights now (--code new trains it again)"
    assert decided(planned(tmp_path, grid, "given", seeds=(0,)))["given"][1] == stale
    again = decided(planned(tmp_path, grid, "given", seeds=(0,), new_code=True))["given"]
    assert again == (Action.RESTART.value, f"{words} has other weights now")
    end(second, folder)
    assert f"the weights of {words} differ between runs: " in notes(collect(grid, runs, folder))


def test_a_copied_folder_has_one_fingerprint(tmp_path):
    for name in ("one", "two"):
        encoder(tmp_path / name, OLD)
    found = [
        read_named_weights(
            specs(chain(variants={"base": {"model.text.encoder": str(tmp_path / name)}}))[
                "base"
            ].config,
            GridFolder(tmp_path / "study"),
        ).fingerprints
        for name in ("one", "two")
    ]
    assert found[0] == found[1]
    assert list(found[0]) == ["model.text.encoder"]


def test_no_run_of_other_weights_is_adopted(tmp_path):
    """A renamed row takes over a finished run only if the weights are still the same."""
    folder_of = tmp_path / "weights"
    encoder(folder_of, OLD)
    row = {"model.text.encoder": str(folder_of)}
    before = chain(variants={"base": {}, "given": row})
    end(specs(before)["given"], GridFolder(tmp_path / "study"))
    renamed = chain(variants={"base": {}, "other": row})
    assert planned(tmp_path, renamed, "other").runs[0].adopts
    encoder(folder_of, NEW)
    (run,) = planned(tmp_path, renamed, "other").runs
    assert (run.adopts, run.action) == (None, Action.START)


def test_an_adopted_run_becomes_stale_too(tmp_path):
    """Without --code new no finished run is trained again."""
    tmp_path.chmod(0o700)
    folder_of, row = tmp_path / "weights", {"model.text.encoder": str(tmp_path / "weights")}
    encoder(folder_of, OLD)
    end(specs(chain(variants={"base": {}, "given": row}))["given"], GridFolder(tmp_path / "study"))
    renamed = chain(variants={"base": {}, "other": row})
    write_submission(planned(tmp_path, renamed, "other"))
    assert decided(planned(tmp_path, renamed, "other"))["other"][1].startswith("done")
    encoder(folder_of, NEW)
    action, why = decided(planned(tmp_path, renamed, "other"))["other"]
    assert action == Action.SKIP.value
    assert "has other weights now (--code new trains it again)" in why
    again = decided(planned(tmp_path, renamed, "other", new_code=True))["other"]
    assert again[0] == Action.START.value


def test_large_files_are_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "RECENT_S", -1)
    encoder(tmp_path / "weights", OLD)
    grid = chain(variants={"base": {"model.text.encoder": str(tmp_path / "weights")}})
    folder = GridFolder(tmp_path / "study")
    folder.path.mkdir()
    config = specs(grid)["base"].config
    first = read_named_weights(config, folder)
    calls = []
    describe = weights.describe
    monkeypatch.setattr(weights, "describe", lambda *a: calls.append(a[0].name) or describe(*a))
    assert read_named_weights(config, folder) == first
    assert calls == []
    encoder(tmp_path / "weights", NEW)
    assert read_named_weights(config, folder) != first
    assert "model.safetensors" in calls


def test_the_revision_of_a_hub_name_is_read(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--tiny--bert" / "snapshots" / ("5" * 40)
    save_network("bert", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("5" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    grid = chain(variants={"base": {"model.text.encoder": "tiny/bert"}})
    found = read_named_weights(specs(grid)["base"].config, GridFolder(tmp_path / "study"))
    assert found.revisions == {"model.text.encoder": "5" * 40}
    assert list(found.fingerprints) == ["model.text.encoder"]
