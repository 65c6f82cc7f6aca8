"""The status of runs whose length is given in epochs, and of runs that stopped early."""

from pathlib import Path

from login_study import GRID, begin, end, grid, pack, planned
from tables_study import result_of
from watch_study import write

from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.monitor.columns import EPOCH, STEP
from furnace_hpc.monitor.grid_status import StatusLine, overview
from furnace_hpc.monitor.job_cache import JobCache
from furnace_hpc.monitor.render import plain
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.result import write_result

BASE = {key: value for key, value in GRID["base"].items() if key != "steps"}


def submitted(place: Path, **base: object) -> list[RunFolder]:
    """Two runs. The first is at step 7."""
    pack(place / "data/tridigits", splits={"train": 320, "val": 8, "test": 8})
    asked = grid(base=BASE | base, variants={"base": {}}, seeds=[0, 1])
    plan = planned(place / "runs", asked, data_root=place / "data")
    write_submission(plan)
    folder = GridFolder(place / "runs/study")
    return [begin(plan.runs[0].spec, folder), folder.run(plan.runs[1].folder.run_id)]


def lines_of(place: Path) -> list[StatusLine]:
    return sorted(overview(GridFolder(place / "runs/study"))[0], key=lambda line: line.run_id)


def test_epochs_beside_steps(tmp_path):
    """320 samples are 20 steps of 16."""
    submitted(tmp_path, epochs=1.5)
    lines = lines_of(tmp_path)
    assert [STEP.cell(line) for line in lines] == ["7/30", "0/30"]
    assert [EPOCH.cell(line) for line in lines] == ["0.35/1.5", "0/1.5"]
    assert lines[0].as_json()["epochs"] == 1.5
    assert plain(lines, JobCache())[0].split()[3:5] == ["step", "epoch"]


def test_runs_in_steps_have_no_epochs(tmp_path):
    submitted(tmp_path, steps=30)
    lines = lines_of(tmp_path)
    assert "epoch" not in plain(lines, JobCache())[0]
    assert "epochs" not in lines[0].as_json()


def finish_at(run: RunFolder, step: int, stopped_early: bool) -> None:
    """Turn the begun run into a finished one of this many steps."""
    write(run, 1, range(8, step + 1))
    spec = RunSpec.model_validate_json(run.spec.read_text())
    write_result(run, result_of(spec, steps=step, stopped_early=stopped_early))
    assert end(run, "done", exit_code=0) == "done"


def test_a_run_that_stopped_early_is_complete(tmp_path):
    run, _ = submitted(tmp_path, epochs=1.5)
    finish_at(run, 20, stopped_early=True)
    done, _ = lines_of(tmp_path)
    assert (done.status.step, done.steps, done.epochs) == (20, 20, 1.0)
    assert done.status.reason == "stopped early, before step 30"
    assert EPOCH.cell(done) == "1/1"


def test_other_done_runs_keep_their_length(tmp_path):
    run, _ = submitted(tmp_path, steps=30)
    finish_at(run, 20, stopped_early=False)
    done, _ = lines_of(tmp_path)
    assert (done.status.step, done.steps, done.status.reason) == (20, 30, "")
    run.result.write_text("{")  # damaged
    assert lines_of(tmp_path)[0].steps == 30
