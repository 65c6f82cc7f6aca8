"""What a plan prints about epochs and early stopping."""

from pathlib import Path

import pytest
from login_study import GRID, grid, pack, planned

from furnace_hpc.launch.planning.show_plan import print_plan

BASE = {key: value for key, value in GRID["base"].items() if key != "steps"}


def printed(place: Path, capsys: pytest.CaptureFixture[str], **base: object) -> str:
    pack(place / "data/tridigits", splits={"train": 320, "val": 8, "test": 8})
    asked = grid(base=BASE | base)
    print_plan(planned(place / "runs", asked, data_root=place / "data"))
    return capsys.readouterr().out


def test_the_plan_has_steps_and_epochs(tmp_path, capsys):
    text = printed(tmp_path, capsys, epochs=1.5)
    assert text.count("epochs 1.5 of tridigits: 30 steps of 16 samples") == 1
    assert "warning" not in text


def test_an_unfinished_cosine_is_a_warning(tmp_path, capsys):
    rule = {"early_stopping": {"patience": 3}, "evaluation.every": 10}
    text = printed(tmp_path, capsys, steps=41, **rule)
    assert "warning: early_stopping with schedule.decay cosine, in base, full: the learning" in text
    assert "cannot stop" not in text


def test_a_constant_rate_is_no_warning(tmp_path, capsys):
    rule = {"early_stopping": {"patience": 3}, "evaluation.every": 10}
    assert "warning" not in printed(
        tmp_path, capsys, steps=41, **rule | {"schedule.decay": "constant"}
    )


def test_early_stopping_without_effect_is_a_warning(tmp_path, capsys):
    """The first evaluation sets the best value, so three more take until step 40."""
    rule = {"early_stopping": {"patience": 3}, "evaluation.every": 10}
    text = printed(tmp_path, capsys, steps=40, **rule)
    assert (
        "warning: early_stopping cannot stop a run of base (40 steps, earliest stop after step 40)"
    ) in text
    assert "cosine" not in text
