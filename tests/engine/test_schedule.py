"""Learning rates over a run."""

import itertools
import math
from typing import Any

import pytest
from make import make_config

from furnace_hpc.engine.optimization.schedule import learning_rate

STEPS, PEAK = 100, 0.5


def rates(**schedule: Any) -> list[float]:
    changes = {f"schedule__{key}": value for key, value in schedule.items()}
    config = make_config(steps=STEPS, optimizer__lr=PEAK, **changes)
    return [learning_rate(config, step) for step in range(STEPS)]


@pytest.mark.parametrize("decay", ["cosine", "constant", "linear", "polynomial", "wsd"])
def test_warm_up_is_linear(decay):
    found = rates(decay=decay, warmup_fraction=0.2)
    assert found[:20] == [PEAK * (step + 1) / 20 for step in range(20)]
    assert found[20] == PEAK
    assert all(a >= b for a, b in itertools.pairwise(found[20:]))


def test_cosine_has_the_bits_of_older_versions():
    angles = [math.pi * (step - 10) / 90 for step in range(10, STEPS)]
    assert rates()[10:] == [PEAK * 0.5 * (1 + math.cos(angle)) for angle in angles]


@pytest.mark.parametrize(
    ("schedule", "halfway"),
    [
        ({"decay": "linear"}, 0.5),
        ({"decay": "polynomial"}, 0.25),
        ({"decay": "polynomial", "power": 3}, 0.125),
        ({"decay": "cosine"}, 0.5),
        ({"decay": "linear", "final_fraction": 0.2}, 0.6),
        ({"decay": "cosine", "final_fraction": 0.1}, 0.55),
        ({"decay": "constant"}, 1.0),
    ],
)
def test_rate_half_way(schedule, halfway):
    assert rates(warmup_fraction=0, **schedule)[50] == pytest.approx(PEAK * halfway)


def test_stable_then_decay():
    found = rates(decay="wsd", warmup_fraction=0.1, stable_fraction=0.5, final_fraction=0.1)
    assert found[10:60] == [PEAK] * 50
    assert found[80] == pytest.approx(PEAK * 0.55)
    assert found[99] == pytest.approx(PEAK * (0.1 + 0.9 / 40))
    usual = rates(decay="wsd", warmup_fraction=0.1)  # decays in the last 20 %
    assert usual[79] == PEAK
    assert usual[90] == pytest.approx(PEAK * 0.5)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"power": 2}, "power is 2.0, but it is for decay polynomial, and decay is cosine"),
        ({"decay": "linear", "stable_fraction": 0.5}, "it is for decay wsd"),
        ({"decay": "constant", "final_fraction": 0.5}, "decay is constant"),
        ({"decay": "wsd", "stable_fraction": 0.95}, "are more than 1 together"),
    ],
)
def test_refused_keys(schedule, message):
    with pytest.raises(ValueError, match=message):
        rates(**schedule)
