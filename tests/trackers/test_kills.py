"""Kill `furnace track` at random moments while runs are preempted and requeued."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tracked_study import TrainedRun, make_runs
from tracker_views import (
    MLflowView,
    TensorBoardView,
    TrackioView,
    WandbView,
    curves,
    wanted,
)

from furnace_hpc.runs.folder import GridFolder

KILLS = 20
VIEWS = {view.name: view for view in (TensorBoardView, WandbView, TrackioView)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VIEWS, "mlflow"])
def test_kills_and_requeues_double_nothing(tmp_path, request, name):
    folder, runs = make_runs(tmp_path, 6)
    (folder.submissions / "1").mkdir(parents=True)
    if name == "mlflow":
        view = MLflowView(folder, request.getfixturevalue("mlflow_address"))
    else:
        view = VIEWS[name](folder)
    dice = random.Random(name)
    random.seed(name)
    for run in runs:
        run.begin()
        run.train(100)
    begun_s = time.monotonic()
    assert track(folder, view) == 0
    whole_s = time.monotonic() - begun_s
    kills = passes = 0
    while kills < KILLS:
        for run in runs:
            happen(run, dice)
        kills += track(folder, view, kill_after_s=dice.uniform(0, whole_s)) != 0
        passes += 1
        assert passes < 10 * KILLS, "almost no pass was long enough for a kill"
    assert track(folder, view) == 0
    shown = view.shown()
    assert sorted(shown) == sorted(run.folder.run_id for run in runs)
    for run in runs:
        points = curves(shown[run.folder.run_id])
        assert points == wanted(run, view.digits)
        assert set(points.values()) == {1}
    attempts = Counter(run.attempt > 1 for run in runs)
    assert attempts[True] >= 3, "too few requeues"


def happen(run: TrainedRun, dice: random.Random) -> None:
    """Let a run train, or be requeued. One in ten requeues changes its numbers."""
    match dice.choice(["train", "train", "nothing", "requeue", "between"]):
        case "train":
            run.train(10 * dice.randint(1, 6))
        case "requeue":
            run.end("preempted")
            if dice.random() < 0.1:
                run.scale += 0.5
            run.begin()
            run.train(10 * dice.randint(0, 6))
        case "between":
            run.end("preempted")
            run.begin()


def track(folder: GridFolder, view, kill_after_s: float | None = None) -> int:
    """Run the command in a child. Return its wait status: that of a kill, or 0."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setpgid(0, 0)
            call(folder, view)
            code = 0
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status


def call(folder: GridFolder, view) -> None:
    from furnace_hpc.commands.track import main

    target = view.target
    with Path(os.devnull).open("w") as sink, redirect_stdout(sink), redirect_stderr(sink):
        main(
            grid="study",
            to=target.to,
            at=target.at,
            project=target.project,
            offline=target.offline,
            follow=False,
            report="none",
            again=False,
            runs_dir=folder.path.parent,
        )
