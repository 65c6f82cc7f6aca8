"""Differences over samples, against hand-worked numbers and against a plain bootstrap."""

import math
import re

import numpy as np
import pytest
from tables_study import accuracy_of, finish, study

from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.tables.ablation import collect
from furnace_hpc.tables.samples import bootstrap, over_samples


def as_bools(text):
    return np.array([letter == "1" for letter in text])


def test_one_pair_of_networks_worked_by_hand():
    # b = 3 samples that the first alone gets right, c = 1 that the second alone does: (3 - 1) / 8
    mean, interval = bootstrap([(as_bools("11110011"), as_bools("10000111"))])
    assert mean == 0.25
    # n times the mean of a draw is B - C, with (B, C) multinomial (8; 3/8, 1/8): its exact 2.5 % and 97.5 % quantiles
    exact = {}
    for b in range(9):
        for c in range(9 - b):
            ways = math.factorial(8) / (math.factorial(b) * math.factorial(c) * math.factorial(8 - b - c))
            exact[b - c] = exact.get(b - c, 0) + ways * 3**b * 1**c * 4 ** (8 - b - c) / 8**8
    assert sum(exact.values()) == pytest.approx(1)
    below = np.cumsum([exact[key] for key in sorted(exact)])
    low, high = (sorted(exact)[int(np.searchsorted(below, q))] / 8 for q in (0.025, 0.975))
    assert interval == (low, high) == (-0.25, 0.75)


def test_several_pairs_are_as_a_plain_bootstrap_over_samples():
    rng = np.random.default_rng(7)
    pairs = [(rng.random(400) < 0.8, rng.random(400) < 0.7) for _ in range(3)]
    mean, (low, high) = bootstrap(pairs)
    difference_N = np.mean([one.astype(float) - other for one, other in pairs], axis=0)
    plain = [difference_N[rng.integers(0, 400, 400)].mean() for _ in range(10_000)]
    assert mean == pytest.approx(difference_N.mean())
    assert (low, high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.003)
    assert bootstrap(pairs) == (mean, (low, high))  # the same each time


def test_equal_networks_differ_by_nothing():
    assert bootstrap([(as_bools("1010"), as_bools("1010"))] * 2) == (0.0, (0.0, 0.0))


def predict(run, right_N, ids_N=None):
    run.predictions("test").parent.mkdir()
    label_N = np.arange(len(right_N)) % 3
    answer_N = np.where(right_N, label_N, (label_N + 1) % 3)
    ids_N = np.arange(len(right_N)) if ids_N is None else ids_N
    arrays = {"logits.digit": np.eye(3)[answer_N], "label.digit": label_N, "sample_id": ids_N}
    np.savez(run.predictions("test"), **arrays)


def test_the_note_says_what_was_compared_and_what_could_not_be(tmp_path):
    grid, runs = study(seeds=[0, 1])
    folder = GridFolder(tmp_path)
    for spec in runs:
        run = finish(spec, folder)
        right_N = np.arange(10_000) < round(10_000 * accuracy_of(spec))
        match spec.variant, spec.config.seed:
            case "consistency_only", 1:
                continue
            case "specific_only", 0:
                predict(run, right_N[::-1][:5000])  # not those of its result
            case "specific_only", 1:
                predict(run, right_N, np.arange(10_000)[::-1])
            case "full", 0:
                predict(run, right_N)
                run.predictions("test").write_bytes(run.predictions("test").read_bytes()[:3000])
            case _:
                predict(run, right_N)
    first, second = over_samples(collect(grid, runs, folder))
    # only nested right answers: base 80.0 %, consistency_only 82.0 %, so 200 of 10,000 samples differ
    assert first.text.startswith(
        "difference to base (points) over samples: consistency_only +2.0 [1.7, 2.3] (1 pair of"
    )
    assert "full +" in first.text
    assert "specific_only" not in first.text
    assert "the trainings held as they are: it says nothing of other seeds" in first.text
    for words in (
        "consistency_only-s1-.{8} has no predictions of test",
        "the predictions of specific_only-s0-.{8} are not those of its result",
        "the predictions of full-s0-.{8} cannot be read",
        "specific_only was tested on other samples than base",
    ):
        assert re.search(words, second.text), words


def test_a_metric_that_is_no_mean_over_samples_is_refused(tmp_path):
    grid, runs = study(metric="test/digit/loss")
    finish(runs[0], GridFolder(tmp_path))
    with pytest.raises(
        ConfigError, match="--samples: test/digit/loss is no mean over samples: ask for --metric test/d"
    ):
        over_samples(collect(grid, runs, GridFolder(tmp_path)))
