"""Damaged checkpoints: all ranks load the one before, and the log names the damaged one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from damage import ALL
from damaged_work import GOOD, NEWEST
from forked_ranks import run_phases

pytestmark = pytest.mark.distributed
SAVED = {"source": "saved", "stage": 2}
QUICK = ("one bit flipped", "manifest truncated")  # a file and the manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def load_damaged(folder: Path, damages: Iterable[str]) -> dict[str, Any]:
    """Damage -> what the ranks loaded."""
    cases = [{"do": "make"} | SAVED, *({"do": "load", "damage": d} | SAVED for d in damages)]
    answers = run_phases(folder, "damaged_work", [(2, cases)])[1:]
    return {answer["damage"]: answer for answer in answers}


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    return load_damaged(folder, QUICK)


@pytest.fixture(scope="module")
def all_answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_damaged(tmp_path_factory.mktemp("all"), (d for d in ALL if d not in QUICK))


@pytest.mark.parametrize("damage", QUICK)
def test_damaged_is_quarantined_and_previous_loaded(answers: dict[str, Any], damage: str):
    check(answers[damage])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage for damage in ALL if damage not in QUICK])
def test_other_damages_are_quarantined(all_answers: dict[str, Any], damage: str):
    check(all_answers[damage])


def check(answer: dict[str, Any]) -> None:
    assert answer["state"] == {"step": GOOD}
    assert answer["is"] == [GOOD], "parameters, moments and buffers, bit for bit"
    assert answer["aside"] == [f"aside-step-{NEWEST}.1"]


def test_log_names_damaged_checkpoints(answers: dict[str, Any], folder: Path):
    log = (folder / "phase-0/rank-0.log").read_text()
    for damage in answers:
        assert f"{damage}/checkpoints/step-{NEWEST} is damaged and set aside" in log
