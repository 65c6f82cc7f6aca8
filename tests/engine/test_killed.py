"""Ranks that are killed while they save, and while checkpoints get their names: the run is the undisturbed one.

benchmarks/resume.py does the same at hundreds of random points.
"""

from pathlib import Path

import pytest
from killed_ranks import Point, run_attempt
from killed_run import differences, new_run, repeated_steps

STEPS = 7
POINTS = {
    "a torn file, as a power cut leaves it": Point("save", nth=2, rank=1, how="torn"),
    "all but the manifest": Point("save", nth=3, rank=0, how="before"),
    "all but the name": Point("rename", nth=2, how="before"),
    "named, and not noted": Point("rename", nth=2, how="after"),
    "an old one half deleted": Point("delete", nth=1),
    "all but the result": Point("result", how="before"),
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    folder = new_run(
        tmp_path_factory.mktemp("calm") / "place", small_data, stage=2, size=2, steps=STEPS
    )
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("when", POINTS)
def test_a_run_killed_while_it_saves_ends_as_the_undisturbed_one(
    calm: Path, small_data: Path, tmp_path: Path, when: str
):
    folder = new_run(tmp_path / "place", small_data, stage=2, size=2, steps=STEPS)
    said, killed = run_attempt(folder, small_data, 2, POINTS[when])
    assert said == "fail", "killed: it does not come back from its own script"
    assert killed >= 1
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    assert differences(folder, calm) == []
    assert not [path.name for path in (folder / "checkpoints").iterdir() if ".tmp-" in path.name]


@pytest.mark.distributed
def test_a_run_told_to_stop_in_its_last_evaluation_leaves_at_once_and_trains_no_step_again(
    calm: Path, small_data: Path, tmp_path: Path
):
    folder = new_run(tmp_path / "place", small_data, stage=2, size=2, steps=STEPS)
    said, _ = run_attempt(folder, small_data, 2, Point("stop", rank=1, how="evaluation on test"))
    assert (said, (folder / "result.json").exists()) == ("requeue", False)
    assert run_attempt(folder, small_data, 2, None) == ("done", 0)
    assert differences(folder, calm) == []
    assert repeated_steps(folder) == 0
    assert not [
        line
        for line in (folder / "metrics/2.jsonl").read_text().splitlines()
        if '"kind": "train"' in line
    ]
