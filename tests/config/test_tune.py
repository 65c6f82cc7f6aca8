"""The key `tune` of a grid: the space, the draws, and what is refused."""

from math import log
from statistics import fmean

import pytest
from grid_files import problem
from tuned_study import ROWS, TUNE, trials_of, tuned_grid

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.grids.grid import with_settings
from furnace_hpc.config.grids.trials import Tuned, expand_chosen
from furnace_hpc.config.grids.tune import Tune, draw_values, is_at_border, space_words


def values(**changes) -> list[dict]:
    return draw_values(Tune.model_validate(TUNE | changes))


def test_every_row_has_the_same_trials():
    of_base, of_full = trials_of(tuned_grid())
    assert [trial.values for trial in of_base.trials] == [trial.values for trial in of_full.trials]
    assert [len(trial.runs) for trial in of_base.trials] == [2, 2, 2]
    for one, other in zip(of_base.runs, of_full.runs, strict=True):
        assert one.config.optimizer == other.config.optimizer
        assert one.config.seed == other.config.seed in (100, 101)
        assert one.config.loss != other.config.loss


def test_trials_do_not_depend_on_the_order_of_rows():
    first = trials_of(tuned_grid())
    turned = trials_of(tuned_grid(variants=dict(reversed(ROWS.items()))))
    assert {t.tuned: t.run_ids for t in first} == {t.tuned: t.run_ids for t in turned}
    assert first[0].tuned != turned[0].tuned


def test_values_depend_on_key_and_number_alone():
    """Other keys, their order, more trials and another name of the grid change nothing."""
    more = {"loss.beta": {"uniform": [0, 1]}, **TUNE["space"]}
    lrs = [one["optimizer.lr"] for one in values(trials=6)]
    assert lrs[:3] == [one["optimizer.lr"] for one in values()]
    assert lrs == [one["optimizer.lr"] for one in values(space=more, trials=6)]
    assert trials_of(tuned_grid(name="other"))[0].run_ids == trials_of(tuned_grid())[0].run_ids
    # these values are part of run ids, so they must never change
    assert lrs[:3] == [0.007374, 0.0004391, 0.01772]


def test_draws_have_their_distributions():
    space = {
        "optimizer.lr": {"log": [1e-4, 1e-2]},
        "loss.beta": {"uniform": [0.0, 2.0]},
        "model.width": {"int": [1, 4]},
        "model.fusion": {"choice": ["a", "b"]},
    }
    drawn = values(space=space, trials=1000)
    lrs = [one["optimizer.lr"] for one in drawn]
    assert min(lrs) >= 1e-4
    assert max(lrs) <= 1e-2
    assert fmean(map(log, lrs)) == pytest.approx(log(1e-3), abs=0.15)
    assert fmean(one["loss.beta"] for one in drawn) == pytest.approx(1.0, abs=0.06)
    widths = [one["model.width"] for one in drawn]
    assert [widths.count(width) for width in (1, 2, 3, 4)] == pytest.approx([250] * 4, abs=45)
    assert sum(one["model.fusion"] == "a" for one in drawn) == pytest.approx(500, abs=50)
    assert all(float(f"{lr:.4g}") == lr for lr in lrs)


def test_trials_are_all_different():
    whole = values(space={"model.width": {"int": [1, 5]}}, trials=5)
    assert sorted(one["model.width"] for one in whole) == [1, 2, 3, 4, 5]


def test_border_means_no_trial_beyond():
    tune = Tune.model_validate(TUNE)
    assert [is_at_border(tune, "optimizer.lr", lr) for lr in (0.0004391, 0.007374, 0.01772)] == [
        True,
        False,
        True,
    ]
    choice = Tune.model_validate(TUNE | {"space": {"loss.beta": {"choice": [0, 1]}}, "trials": 2})
    assert not is_at_border(choice, "loss.beta", 1)
    assert space_words(tune) == ["optimizer.lr (log 0.0003 to 0.03)"]
    assert space_words(choice) == ["loss.beta (one of 0, 1)"]


def test_untuned_grids_keep_their_run_ids():
    plain = tuned_grid().model_copy(update={"tune": None})
    ids = [run.run_id for run in expand(plain, {"tridigits": "f" * 16})]
    # only changes of zero1.json have changed them since `tune` exists
    assert ids[::3] == ["base-s0-144cf148", "full-s0-33813c77"]


def test_chosen_values_are_part_of_the_run_id():
    grid = tuned_grid()
    chosen = {Tuned("base", "tridigits"): {"optimizer.lr": 1e-3}}
    runs = expand_chosen(grid, expand_rows(grid), {"tridigits": "f" * 16}, chosen)
    assert [(run.variant, run.config.seed) for run in runs] == [("base", s) for s in (0, 1, 2)]
    by_hand = tuned_grid(base=grid.base | {"optimizer.lr": 1e-3}, variants={"base": {}})
    assert [run.run_id for run in runs] == [
        run.run_id for run in expand(by_hand, {"tridigits": "f" * 16})
    ]


def test_each_pack_has_its_own_trials():
    found = trials_of(tuned_grid(packs=["a", "b"]))
    assert [t.tuned for t in found] == [
        Tuned(row, pack) for row in ("base", "full") for pack in ("a", "b")
    ]
    assert len({t.digest for t in found}) == 4
    assert len({run_id for t in found for ids in t.run_ids for run_id in ids}) == 24
    pack_seeds = [{run.config.pack_seed for run in t.runs} for t in found]
    assert pack_seeds[0] == pack_seeds[2] != pack_seeds[1]


TOP = "tune: {space: {optimizer.lr: {log: [3e-4, 3e-2]}}, trials: 3, seeds: [100]"
REFUSED = {
    "same seeds": (f"{TOP[:-1]}, 0]}}", "seeds [0] both have 0"),
    "test metric": (f"{TOP}, metric: test/digit/accuracy}}", "Write val/digit/accuracy"),
    "no split": (f"{TOP}, metric: accuracy}}", "wanted val/<task>/<metric>, got 'accuracy'"),
    "unknown metric": (f"{TOP}, metric: val/digit/acc}}", "did you mean 'val/digit/accuracy'?"),
    "one trial": (f"{TOP.replace('trials: 3', 'trials: 1')}}}", "tune.trials"),
    "another method": (f"{TOP}, method: tpe}}", "unknown key 'tune.method'"),
    "two distributions": (
        f"{TOP.replace('{log:', '{uniform: [0, 1], log:')}}}",
        "wanted one of log, uniform, int and choice, got log and uniform",
    ),
    "low above high": (f"{TOP.replace('3e-2', '3e-5')}}}", "wanted low < high"),
    "log of zero": (f"{TOP.replace('3e-4', '0')}}}", "log got a lowest value of 0.0"),
    "few values": (
        "tune: {space: {model.width: {choice: [32, 64]}}, trials: 3, seeds: [100]}",
        "the space has 2 combinations, fewer than 3 trials. Write trials: 2",
    ),
    "few digits": (
        "tune: {space: {optimizer.lr: {uniform: [1.0, 1.0015]}}, trials: 4, seeds: [100]}",
        "fewer than 4 different values of 4 significant digits",
    ),
    "no result": (f"{TOP.replace('optimizer.lr', 'log_every')}}}", "log_every changes no result"),
    "seed": (f"{TOP.replace('optimizer.lr', 'seed')}}}", "seed cannot be tuned"),
    "equal seeds": (f"{TOP[:-1]}, 100]}}", "an entry is a duplicate"),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_search_is_refused(tmp_path, text, words):
    assert words in problem(tmp_path, f"{text}\nvariants: {{base: {{}}}}\n")


@pytest.mark.parametrize("row", ["{optimizer.lr: 1e-3}", "{optimizer: {lr: 1e-3}}"])
def test_a_row_with_a_tuned_key_is_refused(tmp_path, row):
    error = problem(tmp_path, f"{TOP}}}\nvariants: {{base: {{}}, slow: {row}}}\n")
    assert "row 'slow' sets 'optimizer.lr': tune.space searches 'optimizer.lr' for every" in error


def test_a_setting_of_a_tuned_key_is_refused():
    grid = with_settings(tuned_grid(), ["optimizer.lr=1e-3"])
    with pytest.raises(ConfigError, match=r"--set optimizer.lr: tune.space searches"):
        expand_rows(grid)


def test_an_impossible_trial_names_row_and_values():
    grid = tuned_grid({"space": {"model.num_heads": {"choice": [4, 7]}}, "trials": 2})
    with pytest.raises(ConfigError, match=r"row 'base', trial \d \(model.num_heads 7\): "):
        trials_of(grid)


def test_the_metric_may_follow_from_the_table():
    grid = tuned_grid(tune={"metric": None}, metric="test/digit/loss")
    assert grid.tuning_metric == "val/digit/loss"
