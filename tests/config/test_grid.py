"""Expand a grid to rows and runs: their order, and what is refused."""

import random
import re
from dataclasses import replace

import pytest
from login_study import FINGERPRINT, GRID, grid, specs

from furnace_hpc.config.base import NAME_PATTERN, short_name
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import (
    MAX_RUNS,
    _check_rows,
    _combinations,
    expand,
    expand_rows,
)
from furnace_hpc.config.grids.grid import Grid, select_names


def names(**changes):
    return [row.name for row in expand_rows(grid(**changes))]


def rows(**changes):
    return {row.name: row for row in expand_rows(grid(**changes))}


def refused(**changes) -> str:
    with pytest.raises(ConfigError) as error:
        specs(**changes)
    return str(error.value)


def test_runs_are_ordered_by_row_then_seed():
    runs = specs(variants={"full": {"loss.alpha": 1}, "base": {}}, seeds=[3, 0])
    assert [(run.variant, run.config.seed) for run in runs] == [
        ("full", 3),
        ("full", 0),
        ("base", 3),
        ("base", 0),
    ]
    assert {run.data_fingerprint for run in runs} == {FINGERPRINT}


def test_axes_give_all_combinations_of_each_variant():
    """The last axis changes fastest."""
    assert names(
        axes={"loss.alpha": [0.5, 1], "steps": [10, 20]},
        variants={"base": {}, "b": {"optimizer.lr": 1}},
        reference="b_alpha-1_steps-20",
    ) == [f"{v}_alpha-{a}_steps-{s}" for v in ("base", "b") for a in ("0.5", "1") for s in (10, 20)]


def test_zip_changes_keys_together():
    """It multiplies with axes."""
    found = names(
        variants={},
        reference="alpha-1_steps-10_lr-0.1",
        axes={"loss.alpha": [1, 2]},
        zip=[{"steps": [10, 20], "optimizer.lr": [0.1, 0.2]}],
    )
    assert found == [
        f"alpha-{a}_{pair}" for a in (1, 2) for pair in ("steps-10_lr-0.1", "steps-20_lr-0.2")
    ]


def test_exclude_drops_rows_that_match_all_keys():
    axes = {"loss.alpha": [1, 2], "steps": [10, 20]}
    kept = names(
        axes=axes,
        variants={},
        reference="alpha-1_steps-10",
        exclude=[{"loss.alpha": 2, "steps": 20}],
    )
    assert kept == ["alpha-1_steps-10", "alpha-1_steps-20", "alpha-2_steps-10"]


def test_exclude_by_variant_and_by_a_value_of_the_base():
    variants = {"base": {}, "full": {"loss.alpha": 1}, "half": {"steps": 20}}
    assert names(variants=variants, exclude=[{"variant": "full"}]) == ["base", "half"]
    assert names(variants=variants, exclude=[{"steps": 40, "loss.alpha": 1}]) == ["base", "half"]


def test_exclude_that_matches_no_row_is_refused():
    assert refused(exclude=[{"variant": "ful"}]) == (
        "grid 'study': exclude[0] {'variant': 'ful'} matches no row. Correct its values, or "
        "remove it"
    )


def test_exclude_by_a_default_is_refused():
    """`exclude` sees the keys that base or a row sets, and no defaults."""
    message = refused(exclude=[{"model.width": 64}])
    assert message.startswith(
        "grid 'study': exclude[0] {'model.width': 64} matches no row: neither base nor a row sets "
        "'model.width'. Set it in base, or correct the key; "
    )
    assert names(
        base=GRID["base"] | {"model.width": 64}, exclude=[{"model.width": 64, "variant": "full"}]
    ) == ["base"]
    assert "did you mean 'steps'?" in refused(exclude=[{"stepps": 40}])


def test_excluding_everything_is_refused():
    assert "has no rows" in refused(variants={"base": {}}, exclude=[{"variant": "base"}])


def test_leave_one_out_rows():
    factors = {"a": {"loss.alpha": 0.5}, "b": {"loss.beta": 0.3}, "w": {"model.width": 32}}
    found = rows(
        variants={}, reference="full", ablate={"mode": "leave_one_out", "factors": factors}
    )
    values = {
        n: (r.config.loss.alpha, r.config.loss.beta, r.config.model.width) for n, r in found.items()
    }
    assert values == {
        "full": (0.5, 0.3, 32),
        "no_a": (0, 0.3, 32),
        "no_b": (0.5, 0, 32),
        "no_w": (0.5, 0.3, 64),
    }


def test_one_at_a_time_rows():
    factors = {"a": {"loss.alpha": 0.5}, "b": {"loss.beta": 0.3}}
    found = rows(variants={}, ablate={"mode": "one_at_a_time", "factors": factors})
    values = {name: (row.config.loss.alpha, row.config.loss.beta) for name, row in found.items()}
    assert values == {"base": (0, 0), "only_a": (0.5, 0), "only_b": (0, 0.3)}


def test_a_row_of_variants_and_ablate_is_refused():
    ablate = {"mode": "one_at_a_time", "factors": {"a": {"loss.alpha": 0.5}}}
    assert "both variants and ablate make a row 'base'. Rename" in refused(ablate=ablate)


def test_resources_of_a_variant_refine_the_grids():
    found = rows(
        resources={"timeout_min": 5, "partition": "gpu"},
        variants={
            "base": {},
            "full": {"loss.alpha": 1, "resources.nodes": 2, "resources.timeout_min": 9},
        },
    )
    assert [
        (r.resources.nodes, r.resources.timeout_min, r.resources.partition) for r in found.values()
    ] == [
        (None, 5, "gpu"),
        (2, 9, "gpu"),
    ]


def test_nested_and_dotted_overrides_are_equal():
    """Both keep the other keys of a section."""
    base = GRID["base"] | {"optimizer": {"lr": 0.5, "eps": 0.25}}
    dotted = rows(base=base, variants={"base": {"optimizer.lr": 0.1}})["base"].config
    nested = rows(base=base, variants={"base": {"optimizer": {"lr": 0.1}}})["base"].config
    assert dotted == nested
    assert (dotted.optimizer.lr, dotted.optimizer.eps) == (0.1, 0.25)


def test_lists_are_replaced_whole():
    row = rows(variants={"base": {"model.modalities": ["audio"]}})["base"]
    assert row.config.model.modalities == ("audio",)


def test_dotted_keys_change_the_named_deepspeed_file():
    found = rows(
        variants={
            "base": {"deepspeed.zero_optimization.stage": 2},
            "other": {"deepspeed": "zero3", "deepspeed.zero_optimization.overlap_comm": False},
        }
    )
    base, other = found["base"].config.deepspeed, found["other"].config.deepspeed
    assert (base.zero_optimization.stage, base.zero_optimization.reduce_bucket_size) == (
        2,
        50_000_000,
    )
    assert (other.zero_optimization.stage, other.zero_optimization.overlap_comm) == (3, False)
    assert other.zero_optimization.stage3_param_persistence_threshold == 100_000


def test_dotted_keys_of_base_change_its_deepspeed_file():
    base = GRID["base"] | {"deepspeed.zero_optimization.stage": 2, "resources.nodes": 3}
    row = rows(base=base)["base"]
    assert row.config.deepspeed.zero_optimization.stage == 2
    assert row.config.deepspeed.bf16.enabled
    assert row.resources.nodes == 3


def test_equal_rows_are_refused():
    """The error names both."""
    assert "rows 'full' and 'again' train the same thing" in refused(
        variants={"base": {}, "full": {"loss.alpha": 1}, "again": {"loss": {"alpha": 1.0}}}
    )


def test_resources_and_logging_do_not_make_rows_differ():
    assert "train the same thing" in refused(variants={"base": {}, "more": {"resources.nodes": 2}})
    assert "train the same thing" in refused(variants={"base": {}, "more": {"log_every": 3}})


def test_equal_names_are_refused():
    first, second = expand_rows(Grid.model_validate(GRID))[:2]
    with pytest.raises(ConfigError, match=f"2 rows have the name {first.name!r}"):
        _check_rows(Grid.model_validate(GRID), [first, replace(second, name=first.name)])


def test_unknown_reference_and_metric():
    assert "unknown reference 'bass'; did you mean 'base'? (valid: base, full)" in refused(
        reference="bass"
    )
    message = refused(metric="test/digit/acuracy")
    assert "unknown metric 'test/digit/acuracy'; did you mean 'test/digit/accuracy'?" in message


@pytest.mark.parametrize("value", [{"a": 1}, [1], "text", None])
def test_seeds_and_names_are_checked(value):
    with pytest.raises(ValueError, match=r"seeds|validation error"):
        Grid.model_validate(GRID | {"seeds": [value]})


@pytest.mark.parametrize("seeds", [[-1], [2**31], [1, 1], []])
def test_invalid_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="seed"):
        grid(seeds=seeds)


def test_a_seed_in_a_row_is_refused():
    assert "key 'seed' does not belong in a row" in refused(variants={"base": {"seed": 3}})


def test_a_huge_grid_is_refused_before_expansion():
    axes = {f"loss.{c}": list(range(100)) for c in "abc"}
    assert f"4,000,000 runs, more than {MAX_RUNS:,}" in refused(axes=axes)


@pytest.mark.parametrize("seed", range(20))
def test_random_grids_have_unique_ordered_run_ids(seed):
    draw = random.Random(seed)
    keys = ["loss.alpha", "loss.beta", "optimizer.lr", "steps", "model.width", "global_batch_size"]
    draw.shuffle(keys)
    axes = {
        key: [8 * n for n in range(1, draw.randint(2, 4))] for key in keys[: draw.randint(0, 3)]
    }
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


LONG = {
    "loss.alpha": [0.123456789, 1],
    "loss.beta": [0.123456789, 1],
    "optimizer.weight_decay": [0.123456789, 1],
    "schedule.warmup_fraction": [0.123456789, 0.5],
}


def test_long_names_of_combinations_are_shortened():
    """A name becomes its beginning and a hash."""
    full = "alpha-1_beta-1_weight_decay-0.123456789_warmup_fraction-0.123456789"
    found = names(axes=LONG, variants={}, reference=full)
    assert len(found) == len(set(found)) == 16
    assert found[-4] == "alpha-1_beta-1_weight_decay-0.123456789_warmup_frac-7acc9ffeff90"
    assert all(len(name) <= 64 and re.fullmatch(NAME_PATTERN, name) for name in found)
    # one that fits is what it was
    assert found[-1] == "alpha-1_beta-1_weight_decay-1_warmup_fraction-0.5"
    fewer = names(axes=LONG | {"loss.alpha": [1]}, variants={}, reference=full, sanity=[])
    assert fewer == found[8:]  # other combinations change no name
    assert grid(axes=LONG, variants={}, reference=full).reference == found[-4]
    assert select_names(found, [full], "variant") == [found[-4]]


def test_names_of_64_characters_are_kept():
    assert short_name("a" * 64) == "a" * 64
    assert len(short_name("a" * 65)) == 64
    assert short_name("a" * 65) != short_name("a" * 66)


def test_equal_names_of_axis_values_get_a_hash():
    """Names that are not the same stay as they are."""
    content = {
        "name": "marks",
        "base": {"deepspeed": "zero1"},
        "seeds": [0],
        "reference": "betas-0.5.0.25",
        "metric": "test/digit/accuracy",
        "axes": {
            "optimizer.betas": [[0.5, 0.25], [0.5, 0.0], [0.0, 0.5]],
            "loss.alpha": [0.1, 0.2],
        },
    }
    names = [
        row.name
        for row in expand_rows(
            Grid.model_validate(content | {"reference": "betas-0.5.0.25_alpha-0.1"})
        )
    ]
    assert names[0] == "betas-0.5.0.25_alpha-0.1"
    assert len(set(names)) == 6
    texts = {"optimizer.lr": [1e-3], "model.text_weights": ["a/b", "ab", "c"]}
    found = [
        name for name, *_ in _combinations(Grid.model_validate(content | {"axes": texts}), {"": {}})
    ]
    assert [name.partition("text_weights-")[2][:3] for name in found] == ["ab-", "ab-", "c"]
    assert re.fullmatch(r"lr-0\.001_text_weights-ab-[0-9a-f]{8}", found[0])
    assert len(set(found)) == 3
