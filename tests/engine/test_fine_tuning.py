"""Frozen parts, adapters, several rates and other optimizers, with real engines and checkpoints."""

from pathlib import Path
from typing import Any

import pytest
from fine_tune_work import MADE_AT, MORE
from forked_ranks import run_phases

pytestmark = pytest.mark.distributed
OTHERS = ["adam", "nadam", "radam", "adamax", "rmsprop", "sgd"]


def case(do: str, source: str, stage: int, **more: Any) -> dict[str, Any]:
    return {"do": do, "source": source, "stage": stage} | more


def stage_cases(do: str, stages: tuple[int, ...], **more: Any) -> list[dict[str, Any]]:
    return [case(do, f"stage {stage}", stage, **more) for stage in stages]


QUICK = [
    (2, stage_cases("make", (2, 3))),
    (
        1,
        [
            case("resume", "stage 2", 3),
            case("resume", "stage 3", 1),
            case("make", "one rank", 1),
            case("resume", "one rank", 1),
            case("refuse", "stage 2", 1, changes={"model__text_layers": 2}),
        ],
    ),
]
DORA = {
    "model__image_encoder": "vit",
    "model__image_layers": 1,
    "model__image": {"lora": {"rank": 2, "dora": True, "dropout": 0.1}},
    "model__text": {"freeze": "embeddings", "gradient_checkpointing": True},
}
ALL = [
    (
        2,
        stage_cases("make", (0, 1, 2, 3))
        + stage_cases("resume", (0, 1, 2, 3))
        + [
            case("make", "bf16 stage 1", 1, bf16=True),
            case("make", "bf16 stage 3", 3, bf16=True),
            case("resume", "bf16 stage 1", 1, bf16=True),
            case("resume", "bf16 stage 3", 3, bf16=True),
        ],
    ),
    (
        1,
        [
            case("resume", "stage 0", 0),
            case("resume", "stage 1", 3),
            case("resume", "stage 3", 3, is_resident=True),
            case("resume", "bf16 stage 1", 3, bf16=True),
        ],
    ),
    (4, [case("resume", "stage 3", 2), case("resume", "bf16 stage 3", 1, bf16=True)]),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_phases(tmp_path_factory.mktemp("tuned"), "fine_tune_work", QUICK)


def check(answers: list[Any]) -> None:
    """All weights are loaded bit by bit, frozen ones too. The next steps are the same."""
    for answer in (answer for answer in answers if answer["do"] == "resume"):
        assert answer["difference"] == 0.0, answer
        limit = 2e-3 if answer.get("bf16") else 1e-6
        assert answer["loss_difference"] <= limit, answer


def test_other_stage_and_number_of_ranks(answers: list[Any]):
    check(answers[:-1])
    [same] = [answer for answer in answers[:-1] if answer["source"] == "one rank"][1:]
    assert same["same_bits"]


def test_frozen_parameters_have_no_state(answers: list[Any]):
    """AdamW keeps two fp32 values for each trained one. ZeRO divides them among the ranks."""
    by_source = {answer["source"]: answer for answer in answers[:-1] if answer["do"] == "make"}
    for source, ranks in (("stage 2", 2), ("stage 3", 2), ("one rank", 1)):
        made = by_source[source]
        expected = 2 * 4 * made["trained"] / ranks
        # Each part of a group is padded.
        assert expected <= made["state_bytes"] <= expected * 1.01 + 64 * made["groups"], made


def test_rate_and_norm_of_each_group(answers: list[Any]):
    """The rates are multiples of the schedule's, and the norms make up that of all."""
    made = [answer for answer in answers[:-1] if answer["do"] == "make"]
    for answer in made:
        record = answer["record"]
        rates = {name: value for name, value in record.items() if name.startswith("lr/")}
        # Multiplier 0.5, and layer 2 of 2 another 0.5. The first layer is frozen.
        assert {round(value / rates["lr/x1"], 9) for value in rates.values()} == {1.0, 0.25}
        assert set(rates) == {"lr/x1", "lr/x1,no_decay", "lr/x0.25", "lr/x0.25,no_decay"}
        norms = [value for name, value in record.items() if name.startswith("grad_norm/")]
        assert len(norms) == len(rates)
        total = sum(norm**2 for norm in norms) ** 0.5
        assert total == pytest.approx(answer["norm"], rel=1e-5)


def test_other_frozen_parameters_are_refused(answers: list[Any]):
    assert "other frozen parameters" in answers[-1] or "is of another model" in answers[-1]


@pytest.mark.slow
def test_every_stage_resumes(tmp_path: Path):
    """By 1, 2 and 4 ranks, in fp32 and bf16. The same ranks and stage give the same bits."""
    answers = run_phases(tmp_path, "fine_tune_work", ALL, per_case_s=60)
    check(answers)
    resumed = [answer for answer in answers if answer["do"] == "resume"]
    assert len(resumed) == 12
    assert all(answer["same_bits"] for answer in resumed[:6]), resumed
    in_fp32 = [answer for answer in answers if answer["do"] == "make" and not answer.get("bf16")]
    assert len(in_fp32) == 4
    for answer in in_fp32:  # every stage computes the same
        assert answer["losses"] == pytest.approx(in_fp32[0]["losses"], abs=1e-5)
        assert len(answer["losses"]) == MADE_AT + MORE


@pytest.mark.slow
def test_dora_and_gradient_checkpointing(tmp_path: Path):
    make = [case("make", f"stage {stage}", stage, changes=DORA) for stage in (0, 1, 3)]
    resume = [
        case("resume", "stage 1", 1, changes=DORA),
        case("resume", "stage 1", 3, changes=DORA),
    ]
    answers = run_phases(tmp_path, "fine_tune_work", [(1, make), (1, resume)], per_case_s=60)
    assert answers[3]["same_bits"]
    assert answers[4]["difference"] == 0.0


@pytest.mark.slow
def test_every_optimizer_resumes(tmp_path: Path):
    """At another number of ranks and stage. At the same ones bit by bit."""

    def cases(do: str, stage: int) -> list[dict[str, Any]]:
        changes = {name: {"optimizer__name": name, "optimizer__lr": 1e-3} for name in OTHERS}
        return [case(do, name, stage, changes=changes[name]) for name in OTHERS]

    whole = case("make", "adafactor", 0, changes={"optimizer__name": "adafactor"})
    phases = [
        (2, [*cases("make", 2), *cases("resume", 2)]),
        (1, [*cases("resume", 3), whole, whole | {"do": "resume"}]),
    ]
    answers = run_phases(tmp_path, "fine_tune_work", phases, per_case_s=30)
    check(answers)
    assert all(answer["same_bits"] for answer in answers[len(OTHERS) : 2 * len(OTHERS)])
    assert answers[-1]["same_bits"]
    assert len({answer["sha256"] for answer in answers[: len(OTHERS)]}) == len(OTHERS)
