"""Runs on several packs of the data: each (pack, seed) has a training seed of its own."""

import pytest
from login_study import GRID, grid, refused, specs, write_grid

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand, expand_rows
from furnace_hpc.config.seeds import combined_seed, pack_seed
from furnace_hpc.config.train_config import RunSpec, run_ids

PRINTS = {"a": "a" * 16, "b": "b" * 16, "c": "c" * 16}


def runs_on(*packs: str) -> list[RunSpec]:
    return expand(grid(packs=packs), PRINTS)


def test_one_pack_keeps_run_ids_and_seeds():
    """The ids of a grid with one pack. Only changes of zero1.json have changed them since."""
    made = ["base-s0-f8fac758", "base-s1-75770594", "full-s0-3b83f8eb", "full-s1-9f0ba379"]
    assert [spec.run_id for spec in specs()] == run_ids(specs()) == made
    for spec in [*specs(), *runs_on("a")]:
        assert spec.config.pack_seed is None
        assert spec.config.training_seed == spec.config.seed


def test_rows_share_the_seeds_and_packs_do_not():
    runs = runs_on("a", "b", "c")
    seeds = {}
    for spec in runs:
        draw = spec.config.data.name, spec.config.seed
        seeds.setdefault(draw, set()).add(spec.config.training_seed)
    assert len(seeds) == 6
    assert all(len(of_draw) == 1 for of_draw in seeds.values())
    assert len(set.union(*seeds.values())) == 6
    assert all(0 <= seed < 2**31 for of_draw in seeds.values() for seed in of_draw)


def test_the_seeds_of_packs_never_change():
    """Otherwise a newer version would not reproduce a run."""
    assert (pack_seed("a"), pack_seed("tridigits-1of5")) == (1_699_463_305, 1_081_555_438)
    assert combined_seed(1_699_463_305, 1) == 349_782_718


def test_another_pack_keeps_the_runs_of_the_others():
    two, three = runs_on("a", "b"), runs_on("a", "b", "c")
    assert {spec.run_id for spec in two} < {spec.run_id for spec in three}


def test_a_spec_keeps_its_seed_on_disk():
    for spec in runs_on("a", "b"):
        again = RunSpec.model_validate_json(spec.model_dump_json())
        assert (again, again.run_id) == (spec, spec.run_id)
        assert again.config.training_seed == spec.config.training_seed
    assert run_ids(runs_on("a", "b")) == [spec.run_id for spec in runs_on("a", "b")]


def test_a_row_cannot_set_the_seed_of_a_pack(tmp_path):
    with pytest.raises(ConfigError, match="key 'pack_seed' does not belong in a row"):
        expand_rows(grid(base=GRID["base"] | {"pack_seed": 3}))
    write_grid(tmp_path)
    [line] = refused(tmp_path, "study.yaml", "--dry-run", "--set", "pack_seed=3")
    assert "A grid with several `packs` sets it. Remove it" in line
