"""A grid for the tests of `status`: runs in every state, with metrics as a training leaves them."""

from pathlib import Path

from login_study import begin, end, finish, grid, planned, specs

from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.metrics import MetricsFile


def write(run: RunFolder, attempt: int, steps: range, **more: object) -> None:
    """Write records of these steps. The loss is 100/step."""
    metrics = MetricsFile(run.metrics(attempt))
    for step in steps:
        metrics.write({"step": step, "kind": "train", "train/loss": 100 / step, "lr": 1e-3} | more)
        metrics.write({"step": step, "kind": "val", "val/loss": -1.0})
    metrics.close()


def make(tmp_path: Path) -> GridFolder:
    """Four runs: one done, one on its second attempt, one crashed, one never started."""
    write_submission(planned(tmp_path / "runs", grid()))
    folder, runs = GridFolder(tmp_path / "runs" / "study"), specs()
    finish(runs[0], folder)
    end(begin(runs[1], folder), "stopped")
    begin(runs[1], folder)
    write(folder.run(runs[1].run_id), 2, range(8, 21), step_time_s=4.5, samples_per_s=1234.5)
    end(begin(runs[2], folder), "crash", error="RuntimeError: [bold]x[/red]\n " + "long " * 60)
    return folder
