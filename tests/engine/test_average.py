"""The moving average of the weights at every ZeRO stage, and its checkpoints."""

from pathlib import Path
from typing import Any

import pytest
from average_work import DECAY
from elastic_work import MADE_AT
from forked_ranks import run_phases

from furnace_hpc.config.identity import identity_hash
from furnace_hpc.engine.weights.average import decay_of

PARTITIONED = {"stage3_param_persistence_threshold": 0, "sub_group_size": 100}
STAGES: list[dict[str, Any]] = [
    {"stage": 0},
    {"stage": 1},
    {"stage": 2},
    {"stage": 1, "precision": "bf16"},
    {"stage": 3, "zero": PARTITIONED},
]


def case(do: str, source: str, **more: Any) -> dict[str, Any]:
    zero = {"zero": PARTITIONED} if more.get("stage") == 3 else {}
    return {"do": do, "source": source} | zero | more


def test_the_average_forgets_the_first_weights():
    assert [decay_of(0.999, step) for step in (1, 8, 90)] == [2 / 11, 9 / 18, 91 / 100]
    assert decay_of(0.9, 1000) == 0.9
    assert decay_of(DECAY, 1000) == DECAY


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("average")
    cases = [case("follow", f"case {number}", **more) for number, more in enumerate(STAGES)]
    return run_phases(folder, "average_work", [(2, cases)])


@pytest.mark.distributed
def test_it_equals_the_average_of_whole_weights(followed: list[Any]):
    """Bit for bit, in the optimizer, in the network, and in the files that an export reads."""
    assert [answer["stage"] for answer in followed] == [more["stage"] for more in STAGES]
    for answer in followed:
        assert answer["average"] == 0, answer
        assert answer["inside"] == 0, answer
        assert answer["network"] == 0, answer
        assert answer["read"] == 0, answer
        assert answer["moved"] > 1e-4, answer


@pytest.mark.distributed
def test_weights_are_restored_bit_for_bit(followed: list[Any]):
    for answer in followed:
        assert answer["after"] == 0, answer


@pytest.mark.distributed
def test_a_stop_restores_the_weights(tmp_path: Path):
    answers = run_phases(tmp_path, "average_work", [(1, [case("after_error", "a", stage=2)])])
    after_stop, after_error = answers[0]
    assert after_stop == 0
    assert after_error > 0


@pytest.mark.distributed
def test_other_processes_and_stages_load_it(tmp_path: Path):
    """The average of two ranks, loaded by one, also at another stage."""
    phases = [
        (2, [case("make", f"stage {stage}", stage=stage, ema=0.9) for stage in (0, 2, 3)]),
        (
            1,
            [
                case("resume", "stage 0", stage=0, ema=0.9),
                case("resume", "stage 2", stage=2, ema=0.9),
                case("resume", "stage 2", stage=3, ema=0.9),
                case("resume", "stage 3", stage=1, ema=0.9),
            ],
        ),
        (2, [case("resume", f"stage {stage}", stage=stage, ema=0.9) for stage in (0, 2, 3)]),
    ]
    answers = run_phases(tmp_path, "elastic_work", phases)
    resumed = [answer for answer in answers if "differences" in answer]
    assert len(resumed) == 7
    for answer in resumed:
        assert "ema" in answer["differences"], answer
        assert set(answer["differences"].values()) == {0.0}, answer
        assert answer["client_state"] == {"step": MADE_AT}, answer


def test_run_ids_without_it_stay():
    from make import make_config

    plain, averaged = make_config(), make_config(ema={"decay": 0.9})
    content = plain.model_dump(mode="json")
    del content["ema"], content["augment"]
    assert identity_hash(type(plain).model_validate(content), "d") == identity_hash(plain, "d")
    assert identity_hash(averaged, "d") != identity_hash(plain, "d")
