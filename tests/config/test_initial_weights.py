"""Rows that start from other rows: what is refused, and which runs they name."""

from typing import Any

import pytest
from tables_study import GRID

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.grids.initial_weights import check_folders
from furnace_hpc.config.identity import identity_sha256
from furnace_hpc.config.train_config import RunSpec, run_ids

PRINTS = {"tridigits": "a" * 16, "mmimdb": "b" * 16}
ENCODER = {"init_from": {"variant": "text", "parts": ["encoders.text"]}}
ROWS: dict[str, Any] = {
    "base": {},
    "text": {"model.modalities": ["text"]},
    "fused": ENCODER,
}


def study(rows: dict[str, Any] = ROWS, **changes: Any) -> Grid:
    content = GRID | {"seeds": [0, 1], "reference": "base", "variants": rows}
    return Grid.model_validate(content | changes)


def runs(grid: Grid) -> dict[tuple[str, int], RunSpec]:
    return {(run.variant, run.config.seed): run for run in expand(grid, PRINTS)}


def test_a_run_names_the_run_of_its_seed():
    found = runs(study())
    for seed in (0, 1):
        (source,) = found["fused", seed].config.init_from
        assert source.run_id == found["text", seed].run_id
        assert source.parts == ("encoders.text",)
    assert run_ids(list(found.values())) == [run.run_id for run in found.values()]


def test_the_id_follows_the_numbers_of_the_source():
    """Not its name: a renamed source keeps its runs, and those that start from it."""
    before = runs(study())["fused", 0].run_id
    longer = ROWS | {"text": {"model.modalities": ["text"], "optimizer.lr": 1e-4}}
    assert runs(study(longer))["fused", 0].run_id != before
    renamed = {
        "base": {},
        "words": {"model.modalities": ["text"]},
        "fused": {"init_from": {"variant": "words", "parts": ["encoders.text"]}},
    }
    assert runs(study(renamed))["fused", 0].run_id == before


def test_a_chain_is_followed_to_its_first_row():
    chain = ROWS | {"last": {"init_from": {"variant": "fused"}}}
    before = runs(study(chain))["last", 0].run_id
    changed = chain | {"text": {"model.modalities": ["text"], "optimizer.lr": 1e-4}}
    assert runs(study(changed))["last", 0].run_id != before


def test_some_rows_name_the_runs_of_others():
    grid = study()
    rows = [row for row in expand_rows(grid) if row.name == "fused"]
    assert expand(grid, PRINTS, rows) == [runs(grid)["fused", 0], runs(grid)["fused", 1]]


def test_a_row_starts_from_a_row_on_other_data():
    rows = {
        "base": {},
        "first": {"data.name": "mmimdb"},
        "second": {"init_from": {"variant": "first", "parts": ["encoders"]}},
    }
    found = runs(study(rows, sources=["first"]))
    assert found["second", 1].config.init_from[0].run_id == found["first", 1].run_id
    assert found["first", 1].config.data.name == "mmimdb"


def test_a_row_starts_from_the_run_on_its_pack():
    base = {key: value for key, value in GRID["base"].items() if key != "data"}
    grid = study(packs=["tridigits", "mmimdb"], base=base)
    found = {(run.variant, run.config.data.name): run for run in expand(grid, PRINTS)}
    for pack in ("tridigits", "mmimdb"):
        assert found["fused", pack].config.init_from[0].run_id == found["text", pack].run_id


def test_rows_may_differ_in_the_source_alone():
    other = {"variant": "other", "parts": ["encoders.text"]}
    rows = ROWS | {
        "other": {"model.modalities": ["text"], "optimizer.lr": 1e-4},
        "fused_other": {"init_from": other},
    }
    ids = {run.run_id.split("-")[-1] for run in expand(study(rows), PRINTS)}
    assert len(ids) == 10


@pytest.mark.parametrize(
    ("init_from", "words"),
    [
        ({"variant": "txet"}, "'txet', which is not a row; did you mean 'text'?"),
        ({"variant": "fused"}, "names the row itself. Name another row"),
        ({"variant": "text", "parts": ["encoders.image"]}, "row 'text' has no image (it has text)"),
        ({"variant": "text", "run_id": "x"}, "has run_id or identity, which the grid sets"),
        ({"variant": "text", "model": "m"}, "got variant and model. Keep one"),
        ({}, "got none of them. Keep one"),
        ({"variant": "text", "parts": ["encoders..text"]}, "parts"),
    ],
)
def test_wrong_sources_are_refused(init_from, words):
    with pytest.raises(ConfigError) as error:
        expand_rows(study(ROWS | {"fused": {"init_from": init_from}}))
    assert words in str(error.value)


def test_a_circle_is_refused():
    rows = {
        "base": {},
        "a": {"init_from": {"variant": "b"}},
        "b": {"init_from": {"variant": "c"}, "loss.alpha": 0.5},
        "c": {"init_from": {"variant": "a"}, "loss.beta": 0.5},
    }
    with pytest.raises(ConfigError, match="init_from has a circle: a -> b -> c -> a"):
        expand_rows(study(rows))


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["base"], "sources contains the reference 'base'"),
        (["texts"], "'texts', which is not a row; did you mean 'text'?"),
        (["fused"], "'fused', which no init_from names. Remove it"),
    ],
)
def test_wrong_lists_of_sources_are_refused(sources, words):
    with pytest.raises(ConfigError) as error:
        expand_rows(study(sources=sources))
    assert words in str(error.value)


def test_a_tuned_grid_cannot_start_from_its_rows():
    tune = {"space": {"optimizer.lr": {"log": [1e-4, 1e-2]}}, "trials": 2, "seeds": [9]}
    with pytest.raises(ConfigError, match="whose trials use other seeds"):
        expand_rows(study(tune=tune))


def test_a_later_key_with_its_default_changes_no_id():
    """The hash of the source leaves out keys that were added later, as its run id does."""
    found = runs(study())
    source, text = found["fused", 0].config.init_from[0], found["text", 0]
    assert source.identity == identity_sha256(text.config, text.data_fingerprint)
    assert source.identity.startswith(text.run_id.rpartition("-")[2])


def test_a_source_cannot_be_a_sanity_row():
    with pytest.raises(ConfigError, match="'text' is in sources and in sanity"):
        expand_rows(study(sources=["text"], sanity=["text"]))


def test_missing_folders_are_named_before_submission(tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    sources = [{"run": str(run)}, {"model": str(model), "parts": ["fusion"]}]
    rows = expand_rows(study(ROWS | {"more": {"init_from": sources}}))
    with pytest.raises(ConfigError) as error:
        check_folders(rows)
    first, second = str(error.value).splitlines()
    assert f"init_from.run '{run}' is no finished run" in first
    assert f"init_from.model '{model}' is no exported model" in second
    for folder, name in ((run, "result.json"), (model, "config.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    check_folders(rows)
