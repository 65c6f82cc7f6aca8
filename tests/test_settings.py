"""`--set key=value` and the choice of variants and seeds: laid over every row, last; and what is refused."""

import pytest
import yaml
from login_study import grid

from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.grid import Grid, narrowed, with_settings
from furnace_hpc.spec.rows import expand_rows


def set_(*settings: str, **changes):
    return expand_rows(with_settings(grid(**changes), list(settings)))[0].config


def test_settings_are_typed_values_laid_over_every_row():
    asked = with_settings(grid(), ["optimizer.lr=1e-3", "deterministic=false", "model.modalities=[text, audio]"])
    for row in expand_rows(asked):
        assert (row.config.optimizer.lr, row.config.deterministic) == (0.001, False)
        assert row.config.model.modalities == ("text", "audio")
    assert set_("evaluation.metric=null").evaluation.metric is None
    assert set_("loss={alpha: 2}").loss.alpha == 2


def test_settings_are_the_last_word_over_nested_overrides_factors_and_files():
    nested = {"base": {"loss": {"alpha": 0.5, "beta": 0.25}}}
    loss = set_("loss.alpha=3", variants=nested).loss
    assert (loss.alpha, loss.beta) == (3, 0.25)
    factors = {"mode": "one_at_a_time", "factors": {"a": {"loss.alpha": 0.5, "loss.beta": 1}}}
    one = expand_rows(with_settings(grid(variants={}, ablate=factors), ["loss.alpha=3"]))
    assert [(row.config.loss.alpha, row.config.loss.beta) for row in one] == [(3, 0), (3, 1)]
    stage = set_("deepspeed.zero_optimization.stage=3", variants={"base": {"deepspeed": "zero2"}})
    assert stage.deepspeed.zero_optimization.stage == 3
    swapped = set_("deepspeed=zero0", variants={"base": {"deepspeed": "zero2"}})
    assert swapped.deepspeed.zero_optimization.stage == 0
    refined = {"base": {"deepspeed": "zero2", "deepspeed.zero_optimization.stage": 3}}
    assert set_("deepspeed=zero1", variants=refined).deepspeed.zero_optimization.stage == 1


def test_settings_of_resources_reach_the_resources():
    asked = with_settings(grid(resources={"timeout_min": 5}), ["resources.timeout_min=9", "resources.nodes=2"])
    assert {(row.resources.timeout_min, row.resources.nodes) for row in expand_rows(asked)} == {(9, 2)}


def test_settings_survive_the_grid_file_that_submit_writes():
    asked = with_settings(grid(), ["optimizer.lr=1e-3", "steps=7"])
    again = Grid.model_validate(yaml.safe_load(yaml.safe_dump(asked.model_dump(mode="json"), sort_keys=False)))
    assert expand_rows(again) == expand_rows(asked)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "got 'steps', wanted key=value"),
        ("=3", "got '=3', wanted key=value"),
        ("loss.alpha=1", "loss.alpha: the grid sweeps this key"),
        ("optimizer.lr=1", "optimizer.lr: the grid sweeps this key"),
        ("seed=3", "seed: the grid's seeds say which are run; use --seed"),
        ("log_every=[1", "value '\\[1' is not YAML"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    swept = grid(axes={"loss.alpha": [1, 2]}, zip=[{"optimizer.lr": [1, 2], "steps": [3, 4]}])
    with pytest.raises(ConfigError, match=message):
        with_settings(swept, [setting])


def test_narrowing_keeps_the_grids_order_and_refuses_unknown_names():
    assert narrowed(["a", "b", "c"], ["c", "a"], "variant") == ["a", "c"]
    assert narrowed(["a", "b"], [], "variant") == ["a", "b"]
    with pytest.raises(ConfigError, match="unknown variant 'bse'; did you mean 'base'"):
        narrowed(["base", "full"], ["bse"], "variant")
