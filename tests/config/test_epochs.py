"""The length of training in epochs: conversion to steps, identity and errors."""

from fractions import Fraction

import pytest
from login_study import GRID, pack, planned, specs
from login_study import grid as grid_of
from make import make_config

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import with_settings
from furnace_hpc.config.identity import identity, identity_hash
from furnace_hpc.config.train_config import UNKNOWN_STEPS, RunSpec, run_ids, with_steps
from furnace_hpc.data.loading.sampler import step_indices

BASE = {key: value for key, value in GRID["base"].items() if key != "steps"}
ONE = {"variants": {"base": {}}, "seeds": [0]}


def in_epochs(epochs: object, **changes: object) -> RunSpec:
    return specs(base=BASE | {"epochs": epochs} | changes, **ONE)[0]


def refused(base: dict[str, object], row: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as error:
        specs(base=BASE | base, variants={"base": row})
    return str(error.value)


@pytest.mark.parametrize(
    ("epochs", "samples", "batch", "steps"),
    [
        (1, 3500, 32, 110),  # 109.375 steps
        (2, 3500, 32, 219),  # 218.75: the last batch of the first pass is shared
        (0.5, 3500, 32, 55),  # 54.6875
        (1, 320, 32, 10),
        (1.1, 1000, 10, 110),  # 1.1 * 1000 / 10 is 110.00000000000001 as floats
        (0.7, 100, 10, 7),
        (0.001, 100, 32, 1),  # never 0 steps
        (1e-5, 10_000_000, 1, 100),
        (3, 5, 64, 1),
    ],
)
def test_epochs_to_steps(epochs, samples, batch, steps):
    config = with_steps(make_config(epochs=epochs, global_batch_size=batch), samples)
    assert config.steps == steps
    trained, wanted = steps * batch, Fraction(str(epochs)) * samples
    assert trained - batch < wanted <= trained
    assert with_steps(config, samples) == config


def test_one_epoch_trains_on_each_sample():
    samples = 100
    steps = with_steps(make_config(epochs=1, global_batch_size=32), samples).steps
    seen = {index for step in range(steps) for index in step_indices(samples, 0, step, 32).tolist()}
    assert (steps, seen) == (4, set(range(samples)))


def test_a_config_in_steps_stays():
    config = make_config(steps=12)
    assert with_steps(config, 3500) is config


def test_run_ids_have_the_epochs_and_not_the_steps():
    """They are known before the data is packed, and the same after."""
    spec = in_epochs(2)
    assert spec.config.steps == UNKNOWN_STEPS
    known = spec.model_copy(update={"config": with_steps(spec.config, 3500)})
    assert known.config.steps == 438
    assert known.run_id == spec.run_id == run_ids([known])[0]
    assert identity(known.config) == identity(spec.config)
    assert "steps" not in identity(known.config)
    others = [in_epochs(3), in_epochs(2, global_batch_size=32), in_epochs(2.5)]
    assert len({spec.run_id, *(other.run_id for other in others)}) == 4
    assert in_epochs(2.0).run_id == spec.run_id
    other_data = identity_hash(spec.config, "another")
    assert not spec.run_id.endswith(other_data)


def test_run_ids_of_steps_do_not_change():
    """These were made before the keys existed."""
    assert specs(**ONE)[0].run_id == specs(base=GRID["base"] | {"epochs": None}, **ONE)[0].run_id
    without = specs(base=GRID["base"] | {"early_stopping": None}, **ONE)[0].run_id
    assert without == specs(**ONE)[0].run_id == "base-s0-f8fac758"
    stopping = specs(base=GRID["base"] | {"early_stopping.patience": 3}, **ONE)[0]
    assert stopping.run_id != without


def test_the_plan_knows_the_steps(tmp_path):
    """A spec that is written has both, and reads back as the same run."""
    pack(tmp_path / "data/tridigits", splits={"train": 3500, "val": 8, "test": 8})
    asked = grid_of(base=BASE | {"epochs": 2}, **ONE)
    (run,) = planned(tmp_path / "runs", asked, data_root=tmp_path / "data").runs
    assert (run.spec.config.epochs, run.spec.config.steps) == (2.0, 438)
    again = RunSpec.model_validate_json(run.spec.model_dump_json())
    assert again == run.spec
    assert again.run_id == run.folder.run_id == expand(asked, {"tridigits": "feed" * 4})[0].run_id


def test_a_missing_set_is_named(tmp_path):
    asked = grid_of(base=BASE | {"epochs": 2}, **ONE)
    with pytest.raises(ConfigError, match=r"no manifest\.json"):
        planned(tmp_path / "runs", asked, data_root=tmp_path / "nowhere")


def test_steps_and_epochs_together_are_refused():
    message = "steps is 40 and epochs is 2: both give the length of the training. Keep one"
    assert message in refused({"steps": 40, "epochs": 2}, {})
    assert message in refused({"steps": 40}, {"epochs": 2})
    assert "row 'base'" in refused({"steps": 40}, {"epochs": 2})


def test_null_replaces_the_length_of_base():
    rows = {"base": {}, "long": {"steps": None, "epochs": 2}}
    base, long = specs(base=BASE | {"steps": 40}, variants=rows, seeds=[0])
    assert (base.config.epochs, base.config.steps) == (None, 40)
    assert (long.config.epochs, long.config.steps) == (2.0, UNKNOWN_STEPS)
    settings = ["epochs=0.5", "steps=null"]
    changed = expand_rows(with_settings(grid_of(**ONE), settings))[0]
    assert changed.config.epochs == 0.5
    rows = {"base": {}, "long": {"steps": 50, "epochs": None}}
    assert specs(base=BASE | {"epochs": 1}, variants=rows, seeds=[0])[1].config.steps == 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": -1.5}, "epochs"),
        ({"epochs": "two"}, "epochs: got 'two'"),
        ({"epochs": True}, "epochs"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience"),
        ({"early_stopping": {}}, "early_stopping.patience"),
        ({"early_stopping": 3}, "early_stopping: got 3, wanted a mapping"),
        ({"early_stopping": {"patiense": 3}}, "did you mean 'patience'"),
    ],
)
def test_wrong_values_are_refused(content, message):
    assert message in refused(content, {})
