"""`--set key=value`, which overrides every row, and the choice of variants and seeds."""

import re

import pytest
import yaml
from login_study import grid

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, select_names, with_settings


def set_(*settings: str, **changes):
    return expand_rows(with_settings(grid(**changes), list(settings)))[0].config


def test_settings_override_every_row():
    asked = with_settings(
        grid(), ["optimizer.lr=1e-3", "deterministic=false", "model.modalities=[text, audio]"]
    )
    for row in expand_rows(asked):
        assert (row.config.optimizer.lr, row.config.deterministic) == (0.001, False)
        assert row.config.model.modalities == ("text", "audio")
    assert set_("evaluation.metric=null").evaluation.metric is None
    assert set_("optimizer={lr: 2}").optimizer.lr == 2


def test_settings_override_base_and_rows():
    base = {
        "deepspeed": "zero2",
        "deepspeed.zero_optimization.stage": 3,
        "loss": {"alpha": 0.5, "beta": 0.25},
    }
    variants = {"base": {"loss": {"beta": 1}}, "other": {"steps": 3}}
    found = set_("loss.alpha=3", "deepspeed=zero1", base=base, variants=variants)
    assert (found.loss.alpha, found.loss.beta, found.deepspeed.zero_optimization.stage) == (3, 1, 1)
    assert (
        set_("deepspeed.zero_optimization.stage=1", base=base).deepspeed.zero_optimization.stage
        == 1
    )


STAGE = "deepspeed.zero_optimization.stage"


@pytest.mark.parametrize(
    ("changes", "setting", "message"),
    [
        (
            {"axes": {STAGE: [1, 2]}},
            "deepspeed=zero1",
            f"--set deepspeed: the grid sweeps '{STAGE}' under axes",
        ),
        (
            {"axes": {"deepspeed": ["zero1", "zero2"]}},
            f"{STAGE}=1",
            f"--set {STAGE}: the grid sweeps 'deepspeed'",
        ),
        (
            {"axes": {STAGE: [1, 2]}},
            f"{STAGE}=1",
            f"--set {STAGE}: the grid sweeps this key under axes",
        ),
        (
            {"zip": [{"optimizer.lr": [1, 2]}]},
            "optimizer={lr: 3}",
            "sweeps 'optimizer.lr' under zip",
        ),
        (
            {"axes": {"loss": [{"alpha": 1}, {"alpha": 2}]}},
            "loss.alpha=3",
            "sweeps 'loss' under axes",
        ),
        ({"axes": {"loss.beta": [1, 2]}}, "loss=null", "sweeps 'loss.beta' under axes"),
        (
            {},
            "loss.alpha=3",
            "--set loss.alpha: row 'full' sets this key, so it would have a wrong name",
        ),
        ({}, "loss={alpha: 3}", "--set loss: row 'full' sets 'loss.alpha'"),
        (
            {"variants": {"base": {"deepspeed": "zero2"}}},
            f"{STAGE}=1",
            "row 'base' sets 'deepspeed'",
        ),
        (
            {"variants": {"base": {"deepspeed": "zero2"}}},
            "deepspeed=zero1",
            "row 'base' sets this key",
        ),
        (
            {
                "variants": {},
                "ablate": {"mode": "one_at_a_time", "factors": {"a": {"loss.alpha": 0.5}}},
            },
            "loss.alpha=3",
            "row 'only_a' sets this key",
        ),
    ],
)
def test_settings_of_swept_keys_are_refused(changes, setting, message):
    """Keys that make rows differ: of a sweep or of a row."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_settings(grid(**changes), [setting])
    key, _, value = setting.partition("=")
    written = grid(**changes, settings={key: yaml.safe_load(value)})
    with pytest.raises(ConfigError, match=re.escape(message)):  # `settings` in the grid's own file
        expand_rows(written)


def test_settings_of_other_keys_are_accepted():
    swept = {"axes": {"loss.alpha": [1, 2]}, "variants": {}, "reference": "alpha-1"}
    assert set_("loss={beta: 3}", **swept).loss.beta == 3
    rows = {
        "base": {},
        "b": {"steps": 3, "log_every": 7, "evaluation.batch_size": 8, "resources.nodes": 2},
    }
    # they change no number
    changed = ("log_every=1", "evaluation.batch_size=2", "resources.nodes=1")
    row = expand_rows(with_settings(grid(variants=rows), list(changed)))[1]
    assert (row.config.log_every, row.config.evaluation.batch_size, row.resources.nodes) == (
        1,
        2,
        1,
    )


def test_settings_of_resources_reach_the_resources():
    asked = with_settings(
        grid(resources={"timeout_min": 5}), ["resources.timeout_min=9", "resources.nodes=2"]
    )
    assert {(row.resources.timeout_min, row.resources.nodes) for row in expand_rows(asked)} == {
        (9, 2)
    }


def test_settings_survive_the_written_grid_file():
    asked = with_settings(grid(), ["optimizer.lr=1e-3", "steps=7"])
    again = Grid.model_validate(
        yaml.safe_load(yaml.safe_dump(asked.model_dump(mode="json"), sort_keys=False))
    )
    assert expand_rows(again) == expand_rows(asked)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "got 'steps', wanted key=value"),
        ("=3", "got '=3', wanted key=value"),
        ("loss.alpha=1", "loss.alpha: the grid sweeps this key"),
        ("optimizer.lr=1", "optimizer.lr: the grid sweeps this key"),
        ("seed=3", "seed: seeds are listed in the grid. Choose among them with --seed"),
        ("log_every=[1", "value '\\[1' is not YAML"),
    ],
)
def test_invalid_settings_are_refused(setting, message):
    swept = grid(axes={"loss.alpha": [1, 2]}, zip=[{"optimizer.lr": [1, 2], "steps": [3, 4]}])
    with pytest.raises(ConfigError, match=message):
        with_settings(swept, [setting])


def test_chosen_names_keep_the_order_of_the_grid():
    assert select_names(["a", "b", "c"], ["c", "a"], "variant") == ["a", "c"]
    assert select_names(["a", "b"], [], "variant") == ["a", "b"]
    with pytest.raises(ConfigError, match="unknown variant 'bse'; did you mean 'base'"):
        select_names(["base", "full"], ["bse"], "variant")
