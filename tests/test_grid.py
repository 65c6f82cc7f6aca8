"""From a grid file to its rows and runs: which there are, in which order, and what is refused."""

import random

import pytest
import yaml
from login_study import FINGERPRINT, GRID, grid, specs

from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.grid import Grid, load_grid, narrowed, read_grid, with_settings
from furnace_hpc.spec.rows import MAX_RUNS, expand, expand_rows


def names(**changes):
    return [row.name for row in expand_rows(grid(**changes))]


def rows(**changes):
    return {row.name: row for row in expand_rows(grid(**changes))}


def refused(**changes) -> str:
    with pytest.raises(ConfigError) as error:
        specs(**changes)
    return str(error.value)


def test_runs_are_rows_in_file_order_and_within_a_row_the_seeds():
    runs = specs(variants={"full": {"loss.alpha": 1}, "base": {}}, seeds=[3, 0])
    assert [(run.variant, run.config.seed) for run in runs] == [
        ("full", 3),
        ("full", 0),
        ("base", 3),
        ("base", 0),
    ]
    assert {run.data_fingerprint for run in runs} == {FINGERPRINT}


def test_axes_give_all_combinations_the_last_axis_fastest_within_each_variant():
    assert names(
        axes={"loss.alpha": [0.5, 1], "steps": [10, 20]},
        variants={"base": {}, "b": {"optimizer.lr": 1}},
        reference="b_alpha-1_steps-20",
    ) == [f"{v}_alpha-{a}_steps-{s}" for v in ("base", "b") for a in ("0.5", "1") for s in (10, 20)]


def test_zip_changes_keys_together_and_multiplies_with_axes():
    found = names(
        variants={},
        reference="alpha-1_steps-10_lr-0.1",
        axes={"loss.alpha": [1, 2]},
        zip=[{"steps": [10, 20], "optimizer.lr": [0.1, 0.2]}],
    )
    assert found == [f"alpha-{a}_{pair}" for a in (1, 2) for pair in ("steps-10_lr-0.1", "steps-20_lr-0.2")]


def test_exclude_leaves_out_rows_that_match_all_keys_of_an_entry():
    axes = {"loss.alpha": [1, 2], "steps": [10, 20]}
    kept = names(axes=axes, variants={}, reference="alpha-1_steps-10", exclude=[{"loss.alpha": 2, "steps": 20}])
    assert kept == ["alpha-1_steps-10", "alpha-1_steps-20", "alpha-2_steps-10"]


def test_exclude_by_variant_and_by_a_value_of_the_base():
    variants = {"base": {}, "full": {"loss.alpha": 1}, "half": {"steps": 20}}
    assert names(variants=variants, exclude=[{"variant": "full"}]) == ["base", "half"]
    assert names(variants=variants, exclude=[{"steps": 40, "loss.alpha": 1}]) == ["base", "half"]


def test_exclude_that_matches_no_row_is_refused():
    assert refused(exclude=[{"variant": "ful"}]) == "grid 'study': exclude[0] {'variant': 'ful'} matches no row"


def test_excluding_everything_is_refused():
    assert "has no rows" in refused(variants={"base": {}}, exclude=[{"variant": "base"}])


def test_leave_one_out_gives_full_and_one_row_without_each_factor():
    factors = {"a": {"loss.alpha": 0.5}, "b": {"loss.beta": 0.3}, "w": {"model.width": 32}}
    found = rows(variants={}, reference="full", ablate={"mode": "leave_one_out", "factors": factors})
    values = {n: (r.config.loss.alpha, r.config.loss.beta, r.config.model.width) for n, r in found.items()}
    assert values == {
        "full": (0.5, 0.3, 32),
        "no_a": (0, 0.3, 32),
        "no_b": (0.5, 0, 32),
        "no_w": (0.5, 0.3, 64),
    }


def test_one_at_a_time_gives_base_and_one_row_with_each_factor():
    factors = {"a": {"loss.alpha": 0.5}, "b": {"loss.beta": 0.3}}
    found = rows(variants={}, ablate={"mode": "one_at_a_time", "factors": factors})
    values = {name: (row.config.loss.alpha, row.config.loss.beta) for name, row in found.items()}
    assert values == {"base": (0, 0), "only_a": (0.5, 0), "only_b": (0, 0.3)}


def test_a_row_made_by_variants_and_by_ablate_is_refused():
    ablate = {"mode": "one_at_a_time", "factors": {"a": {"loss.alpha": 0.5}}}
    assert "'base' is made by both variants and ablate" in refused(ablate=ablate)


def test_resources_of_a_variant_refine_the_grids():
    found = rows(
        resources={"timeout_min": 5, "partition": "gpu"},
        variants={"base": {}, "full": {"loss.alpha": 1, "resources.nodes": 2, "resources.timeout_min": 9}},
    )
    assert [(r.resources.nodes, r.resources.timeout_min, r.resources.partition) for r in found.values()] == [
        (None, 5, "gpu"),
        (2, 9, "gpu"),
    ]


def test_nested_and_dotted_overrides_mean_the_same_and_keep_the_other_keys():
    base = GRID["base"] | {"optimizer": {"lr": 0.5, "eps": 0.25}}
    dotted = rows(base=base, variants={"base": {"optimizer.lr": 0.1}})["base"].config
    nested = rows(base=base, variants={"base": {"optimizer": {"lr": 0.1}}})["base"].config
    assert dotted == nested
    assert (dotted.optimizer.lr, dotted.optimizer.eps) == (0.1, 0.25)


def test_lists_are_replaced_whole():
    row = rows(variants={"base": {"model.modalities": ["audio"]}})["base"]
    assert row.config.model.modalities == ("audio",)


def test_a_deepspeed_files_name_can_be_refined_by_dotted_keys_after_it():
    found = rows(
        variants={
            "base": {"deepspeed.zero_optimization.stage": 2},
            "other": {"deepspeed": "zero3", "deepspeed.zero_optimization.overlap_comm": False},
        }
    )
    base, other = found["base"].config.deepspeed, found["other"].config.deepspeed
    assert (base.zero_optimization.stage, base.zero_optimization.reduce_bucket_size) == (2, 200_000_000)
    assert (other.zero_optimization.stage, other.zero_optimization.overlap_comm) == (3, False)
    assert other.zero_optimization.stage3_param_persistence_threshold == 100_000


def test_two_rows_that_train_the_same_thing_are_refused_naming_both():
    assert "rows 'full' and 'again' train the same thing" in refused(
        variants={"base": {}, "full": {"loss.alpha": 1}, "again": {"loss": {"alpha": 1.0}}}
    )


def test_rows_that_differ_only_in_resources_or_logging_are_the_same_row():
    assert "train the same thing" in refused(variants={"base": {}, "more": {"resources.nodes": 2}})
    assert "train the same thing" in refused(variants={"base": {}, "more": {"log_every": 3}})


def test_two_combinations_with_one_name_are_refused_as_such():
    axes = {"loss.alpha": [0.5], "loss.beta": [0.25, "0.25"]}
    message = refused(axes=axes, variants={}, reference="alpha-0.5_beta-0.25")
    assert "2 rows are named 'alpha-0.5_beta-0.25'" in message


def test_unknown_reference_and_metric_name_the_nearest():
    assert "unknown reference 'bass'; did you mean 'base'? (valid: base, full)" in refused(reference="bass")
    message = refused(metric="test/digit/acuracy")
    assert "unknown metric 'test/digit/acuracy'; did you mean 'test/digit/accuracy'?" in message


@pytest.mark.parametrize("value", [{"a": 1}, [1], "text", None])
def test_seeds_and_names_are_checked(value):
    with pytest.raises(ValueError, match=r"seeds|validation error"):
        Grid.model_validate(GRID | {"seeds": [value]})


@pytest.mark.parametrize("seeds", [[-1], [2**31], [1, 1], []])
def test_seeds_out_of_range_twice_or_none_are_refused(seeds):
    with pytest.raises(ValueError, match="seed"):
        grid(seeds=seeds)


def test_a_seed_in_a_row_is_refused():
    assert "key 'seed' does not belong in a row" in refused(variants={"base": {"seed": 3}})


def test_a_grid_that_explodes_is_refused_before_it_is_expanded():
    axes = {f"loss.{c}": list(range(100)) for c in "abc"}
    assert f"4,000,000 runs, more than {MAX_RUNS:,}" in refused(axes=axes)


def test_all_problems_of_a_file_come_at_once_with_key_path_and_nearest_name(tmp_path):
    content = GRID | {
        "seed": [0],
        "direction": "up",
        "zip": [{"steps": [1, 2], "loss.alpha": [1]}],
        "seeds": "0",
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        read_grid(path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any("unknown key 'seed'; did you mean 'seeds'?" in line for line in lines)
    assert any("direction: got 'up': input should be 'max' or 'min'" in line for line in lines)
    assert any("seeds: got '0': input should be a valid tuple" in line for line in lines)
    assert len(lines) == 3


def test_problems_of_several_rows_come_at_once():
    variants = {
        "base": {"optimzer.lr": 1},
        "b": {"optimizer.lr": -1, "model.widht": 8},
        "c": {"deepspeed": "zero7"},
    }
    lines = refused(variants=variants).splitlines()
    assert len(lines) == 4
    assert "row 'base': unknown key 'optimzer'; did you mean 'optimizer'?" in lines[0]
    assert any("row 'b': unknown key 'model.widht'; did you mean 'width'?" in line for line in lines)
    assert any("row 'b': optimizer.lr: got -1: input should be greater than 0" in line for line in lines)
    assert "row 'c': unknown DeepSpeed file 'zero7'; did you mean 'zero" in lines[3]
    assert "(valid: zero0, zero1, zero2, zero3, zero3_offload)" in lines[3]


def test_one_mistake_of_the_base_is_told_once():
    lines = refused(base=GRID["base"] | {"stepps": 3}).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("grid 'study', row 'base' and 1 more: unknown key 'stepps'; did you mean 'steps'?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "got a list, wanted a mapping of keys"),
        ("word\n", "got a text, wanted a mapping"),
        ("", "got nothing, wanted a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_grid(str(path))


def test_a_list_where_a_mapping_belongs_is_refused_with_its_place(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GRID | {"variants": ["base", "full"]}))
    with pytest.raises(ConfigError, match=r"variants: got .*'base', 'full'.*: input should be a valid dict"):
        load_grid(str(path))
    assert "loss: got [1, 2]" in refused(variants={"base": {"loss": [1, 2]}})


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
    assert set_("loss.alpha=3", variants=nested).loss.model_dump() == {"alpha": 3, "beta": 0.25}
    factors = {"mode": "one_at_a_time", "factors": {"a": {"loss.alpha": 0.5, "loss.beta": 1}}}
    one = expand_rows(with_settings(grid(variants={}, ablate=factors), ["loss.alpha=3"]))
    assert [(row.config.loss.alpha, row.config.loss.beta) for row in one] == [(3, 0), (3, 1)]
    stage = set_("deepspeed.zero_optimization.stage=3", variants={"base": {"deepspeed": "zero2"}})
    assert stage.deepspeed.zero_optimization.stage == 3
    swapped = set_("deepspeed=zero0", variants={"base": {"deepspeed": "zero2"}})
    assert swapped.deepspeed.zero_optimization.stage == 0


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


@pytest.mark.parametrize("seed", range(20))
def test_random_grids_have_no_two_equal_run_ids_and_a_stable_order(seed):
    draw = random.Random(seed)
    keys = ["loss.alpha", "loss.beta", "optimizer.lr", "steps", "model.width", "global_batch_size"]
    draw.shuffle(keys)
    axes = {key: [8 * n for n in range(1, draw.randint(2, 4))] for key in keys[: draw.randint(0, 3)]}
    length = draw.randint(1, 3)
    zipped = [{key: [8 * n for n in range(1, length + 1)] for key in keys[3 : draw.randint(4, 6)]}]
    seeds = draw.sample(range(100), draw.randint(1, 4))
    asked = grid(variants={}, axes=axes, zip=zipped, seeds=seeds, reference="x")
    with pytest.raises(ConfigError, match="unknown reference 'x'") as error:
        expand_rows(asked)
    first = str(error.value).rpartition("valid: ")[2].split(", ")[0].rstrip(")")
    asked = grid(variants={}, axes=axes, zip=zipped, seeds=seeds, reference=first)
    runs = expand(asked, {"tridigits": FINGERPRINT})
    ids = [run.run_id for run in runs]
    count = length * len(seeds)
    for values in axes.values():
        count *= len(values)
    assert len(ids) == len(set(ids)) == count
    assert ids == [run.run_id for run in expand(asked, {"tridigits": FINGERPRINT})]
