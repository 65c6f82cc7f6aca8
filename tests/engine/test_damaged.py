"""Damaged checkpoints: all ranks load the one before, and the log names the damaged one."""

from pathlib import Path
from typing import Any

import pytest
from damage import ALL
from damaged_work import GOOD, NEWEST
from forked_ranks import run_phases

pytestmark = pytest.mark.distributed
SAVED = {"source": "saved", "stage": 2}
CASES = [{"do": "make"} | SAVED, *({"do": "load", "damage": damage} | SAVED for damage in ALL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    return {
        answer["damage"]: answer for answer in run_phases(folder, "damaged_work", [(2, CASES)])[1:]
    }


@pytest.mark.slow
@pytest.mark.parametrize("damage", ALL)
def test_damaged_is_quarantined_and_previous_loaded(answers: dict[str, Any], damage: str):
    answer = answers[damage]
    assert answer["state"] == {"step": GOOD}
    assert answer["is"] == [GOOD], "parameters, moments and buffers, bit for bit"
    assert answer["aside"] == [f"aside-step-{NEWEST}.1"]


def test_log_names_damaged_checkpoints(answers: dict[str, Any], folder: Path):
    log = (folder / "phase-0/rank-0.log").read_text()
    for damage in answers:
        assert f"{damage}/checkpoints/step-{NEWEST} is damaged and set aside" in log
