"""TriDigits from disjoint pools: the K packs of a pool share no image and no voice."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import (
    TRIDIGITS_TEST_PER_TRAIN,
    Manifest,
    PackOrigin,
    origin_of,
    read_manifest,
)
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.packing.pack_command import knobs_of
from furnace_hpc.data.sets.tridigits.pack import pack_once
from furnace_hpc.data.sets.tridigits.plan import (
    MAX_POOLS,
    SplitPlan,
    TriDigitsKnobs,
    make_plan,
)
from furnace_hpc.data.sets.tridigits.render import IMAGE_NOISE, PLAN, stream
from furnace_hpc.data.sets.tridigits.sample_files import write_samples
from furnace_hpc.data.sets.tridigits.speech import VOICES
from furnace_hpc.host.portable import missing_instructions
from furnace_hpc.pack import tridigits

SMALL = {"train": 12, "val": 4, "test": 4, "speech": "bank"}


def ignore(what: str, done: int, total: int) -> None:
    """Report nothing."""


def plans_of(pool: str | None, seed: int = 0, **changes) -> dict[str, SplitPlan]:
    knobs = TriDigitsKnobs(pool=pool, seed=seed, **changes)
    return make_plan(knobs, np.random.default_rng(stream(knobs, PLAN)))


def used(plans: dict[str, SplitPlan], field: str) -> set:
    return {value for plan in plans.values() for value in getattr(plan, field)}


@pytest.mark.parametrize("parts", [2, 5, MAX_POOLS])
def test_packs_of_a_pool_share_no_image_or_voice(parts):
    """The packs may even have different seeds."""
    packs = [plans_of(f"{part}/{parts}", seed=part % 2) for part in range(1, parts + 1)]
    for field in ("image", "voice"):
        for one, other in combinations([used(plans, field) for plans in packs], 2):
            assert not one & other
    assert set.union(*(used(plans, "voice") for plans in packs)) == set(VOICES)
    targets = load_digits().target
    for plans in packs:
        assert {int(targets[index]) for index in used(plans, "image")} == set(range(10))
        for field in ("image", "voice"):
            splits = [set(getattr(plan, field)) for plan in plans.values()]
            assert all(splits)
            assert not any(one & other for one, other in combinations(splits, 2))


def test_packs_without_a_pool_share_images():
    """The images that are drawn for test in one pack are drawn for train in another."""
    one, other = plans_of(None, seed=1), plans_of(None, seed=2)
    test, train = set(one["test"].image), set(other["train"].image)
    assert len(test & train) / len(test) > 0.6


def test_the_parts_have_the_usual_proportions():
    plans = plans_of("2/5", train=4000)
    images = [len(set(plan.image)) for plan in plans.values()]
    assert images == pytest.approx([0.7 * 1797 / 5, 0.1 * 1797 / 5, 0.2 * 1797 / 5], abs=12)
    assert [len(set(plan.voice)) for plan in plans.values()] == [9, 4, 4]


def test_parts_have_noise_of_their_own():
    streams = [stream(TriDigitsKnobs(pool=pool), IMAGE_NOISE, 3) for pool in ("1/5", "2/5", None)]
    assert len({int(seeds.generate_state(1)[0]) for seeds in streams}) == 3


@pytest.mark.skipif(bool(missing_instructions()), reason="this CPU has no AVX2")
def test_a_pack_without_a_pool_keeps_its_bytes(tmp_path):
    """The fingerprint is that of a pack from before pools existed, on every CPU with AVX2."""
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, "-P", "-m", "furnace_hpc.pack", "tridigits", "--out", "set"]
    subprocess.run([*command, *options], cwd=tmp_path, check=True, capture_output=True)
    manifest = read_manifest(tmp_path / "set")
    assert manifest.fingerprint == "129042503f992de9"
    assert "pool" not in manifest.preprocessing["knobs"]


def test_a_part_is_packed_and_named(tmp_path):
    out = tmp_path / "set"
    tridigits(out, pool="2/5", **SMALL)
    manifest = open_columns(out).manifest
    assert manifest.preprocessing["knobs"]["pool"] == "2/5"
    expected = PackOrigin(pool="tridigits", part="2/5", test_per_train=20 / 43)
    assert origin_of(manifest) == expected
    assert not pack_once(TriDigitsKnobs(pool="2/5", **SMALL), out, ignore)[1]
    with pytest.raises(ConfigError, match="with other settings"):
        pack_once(TriDigitsKnobs(pool="3/5", **SMALL), out, ignore)
    assert len(write_samples(out, tmp_path / "samples")) == 10  # they are rendered again


@pytest.mark.parametrize("pool", ["0/5", "6/5", "1/1", "1/11", "5", "1/5/5", "-1/5", "1/ 5", ""])
def test_other_text_is_refused(pool):
    with pytest.raises(ConfigError, match=r"^--pool is '.*': wanted I/K with I from 1 to K, and K"):
        knobs_of(TriDigitsKnobs, "", pool=pool)


def test_the_ratio_is_that_of_the_voices():
    plans = plans_of(None, train=4000)
    voices = {split: len(set(plan.voice)) for split, plan in plans.items()}
    assert voices["test"] / voices["train"] == TRIDIGITS_TEST_PER_TRAIN


def manifest_of(dataset: str, **preprocessing) -> Manifest:
    return Manifest(
        dataset=dataset,
        modalities=("image",),
        splits={"train": 50, "val": 10, "test": 20},
        columns={},
        files={},
        labels={},
        statistics={},
        vocab_size=None,
        preprocessing=preprocessing,
        versions={},
        fingerprint="0" * 16,
    )


def test_other_packs_can_name_their_collection():
    made = {"seed": 3, "digits": "MNIST, idx files"}
    assert origin_of(manifest_of("avmnist", made_by=made)) == PackOrigin(
        pool="avmnist of MNIST, idx files", test_per_train=0.4
    )
    assert origin_of(manifest_of("avmnist", made_by="unknown: no avmnist.json")) is None
    assert origin_of(manifest_of("mine", pool="scans")) == PackOrigin(
        pool="scans", test_per_train=0.4
    )
    assert origin_of(manifest_of("mine")) is None
