"""Ranks are killed while they save. The resumed run must equal an undisturbed one.

benchmarks/resume.py does the same at hundreds of random points.
"""

from pathlib import Path

import pytest
from killed_ranks import Point, run_attempt
from killed_run import differences, new_run, repeated_steps

STEPS = 7
POINTS = {
    "while the state is copied": Point("copy", nth=4, rank=1, seconds=0.05),
    "a torn file, as after a power cut": Point("save", nth=2, rank=1, how="torn"),
    "no manifest": Point("save", nth=3, rank=0, how="before"),
    "not renamed": Point("rename", nth=2, how="before"),
    "renamed, not recorded": Point("rename", nth=2, how="after"),
    "an old checkpoint is partly deleted": Point("delete", nth=1),
    "no result": Point("result", how="before"),
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    folder = new_run(
        tmp_path_factory.mktemp("calm") / "place", small_data, stage=2, size=2, steps=STEPS
    )
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    return folder


# The other points take the same two attempts each.
QUICK = (
    "while the state is copied",
    "a torn file, as after a power cut",
    "renamed, not recorded",
)
WHEN = (w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in POINTS)


@pytest.mark.distributed
@pytest.mark.parametrize("when", WHEN)
def test_killed_while_saving(calm: Path, small_data: Path, tmp_path: Path, when: str):
    folder = new_run(tmp_path / "place", small_data, stage=2, size=2, steps=STEPS)
    decision, killed = run_attempt(folder, small_data, 2, POINTS[when])
    assert decision == "fail", "a killed run is not requeued by its own script"
    assert killed >= 1
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    assert differences(folder, calm) == []
    assert not [path.name for path in (folder / "checkpoints").iterdir() if ".tmp-" in path.name]


@pytest.mark.distributed
def test_stop_signal_in_the_last_evaluation(calm: Path, small_data: Path, tmp_path: Path):
    """The run stops at once. The resumed run evaluates and trains no step again."""
    folder = new_run(tmp_path / "place", small_data, stage=2, size=2, steps=STEPS)
    stop = Point("stop", rank=1, how="evaluation on test")
    decision, _ = run_attempt(folder, small_data, 2, stop)
    assert (decision, (folder / "result.json").exists()) == ("requeue", False)
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    assert differences(folder, calm) == []
    assert repeated_steps(folder) == 0
    assert '"kind": "train"' not in (folder / "metrics/2.jsonl").read_text()
