"""Event files, read back with TensorBoard's own reader."""

from collections import Counter

import pytest
from tracked_study import counted, make_runs
from tracker_views import TensorBoardView, single

from furnace_hpc.config.cluster import TrackerTarget
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.trackers.mirror import mirror

pytest.importorskip("tensorboard", reason="needs the package tensorboard")
TARGET = TrackerTarget(to="tensorboard")


def shown(folder: GridFolder) -> dict[str, Counter]:
    return TensorBoardView(folder).shown()


def wanted(run) -> Counter:
    """The points of the run folder in TensorBoard's 32 bits."""
    points = counted(run.folder).items()
    return Counter((name, step, single(value)) for (name, step), value in points)


def curves(points: Counter) -> Counter:
    return Counter(
        {key: n for key, n in points.items() if not key[0].startswith(("final/", "cost/"))}
    )


def without_times(points: Counter) -> Counter:
    return Counter({key: count for key, count in points.items() if key[0] != "step_time_s"})


def test_a_finished_run_is_complete(tmp_path):
    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(500)
    run.finish()
    done = mirror(folder, TARGET, report="results/study/report.html")
    assert (done.num_runs, done.num_changed, done.num_records) == (1, 1, 60)
    points = shown(folder)[run.folder.run_id]
    assert curves(points) == wanted(run)
    assert len(curves(points)) == 3 * 50 + 10
    final = {name: (step, value) for name, step, value in points - curves(points)}
    assert final["final/test/digit/accuracy"] == (400, pytest.approx(0.8, abs=0.1))
    hours = (run.clock_s - 1_700_000_000) * 2 / 3600
    assert final["cost/gpu_hours"] == (500, pytest.approx(hours))


def test_nothing_new_sends_nothing(tmp_path):
    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(100)
    mirror(folder, TARGET)
    [file] = (folder.trackers / "tensorboard").rglob("events*")
    before = file.stat()
    assert mirror(folder, TARGET).num_changed == 0
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    run.train(10)
    assert mirror(folder, TARGET).num_records == 1
    assert curves(shown(folder)[run.folder.run_id]) == wanted(run)


def test_a_requeued_run_stays_one_run(tmp_path):
    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(110)
    mirror(folder, TARGET)
    run.end("preempted")
    run.begin()  # at step 80
    run.train(20)
    assert mirror(folder, TARGET).num_replaced == 0
    run.train(40)
    mirror(folder, TARGET)
    points = shown(folder)
    assert list(points) == [run.folder.run_id]
    assert without_times(curves(points[run.folder.run_id])) == without_times(wanted(run))


def test_other_numbers_replace_the_older_ones(tmp_path):
    """A run that resumed on another number of processes has other numbers after its checkpoint."""
    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(110)
    mirror(folder, TARGET)
    run.end("preempted")
    run.scale = 1.5
    run.begin()
    run.train(20)
    assert mirror(folder, TARGET).num_replaced == 1
    assert curves(shown(folder)[run.folder.run_id]) == wanted(run)
    assert len(list((folder.trackers / "tensorboard").rglob("events*"))) == 1


def test_a_run_of_newer_code_replaces_the_older_one(tmp_path):
    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(110)
    mirror(folder, TARGET)
    run.folder.path.rename(folder.path / "replaced")
    run.attempt = run.saved = 0
    run.begin()
    run.train(130)
    assert mirror(folder, TARGET).num_replaced == 1
    assert curves(shown(folder)[run.folder.run_id]) == wanted(run)


def test_a_deleted_folder_is_written_again(tmp_path):
    folder, runs = make_runs(tmp_path, 2)
    for run in runs:
        run.begin()
        run.train(100)
    mirror(folder, TARGET)
    files = list((folder.trackers / "tensorboard").rglob("events*"))
    files[0].unlink()
    for run in runs:
        run.train(10)
    mirror(folder, TARGET)
    points = shown(folder)
    assert all(curves(points[run.folder.run_id]) == wanted(run) for run in runs)


def test_bytes_of_a_killed_process_are_cut_off(tmp_path):
    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(100)
    mirror(folder, TARGET)
    [cursor] = folder.trackers.glob("*.json")
    before = cursor.read_bytes()
    run.train(50)
    mirror(folder, TARGET)
    cursor.write_bytes(before)  # the kill came before the cursor was written
    run.train(10)
    mirror(folder, TARGET)
    assert curves(shown(folder)[run.folder.run_id]) == wanted(run)
    cursor.write_text("{damaged")
    mirror(folder, TARGET)
    assert curves(shown(folder)[run.folder.run_id]) == wanted(run)


def test_config_and_tags_are_shown(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(100)
    run.end("crash")
    mirror(folder, TARGET, report="https://host/report.html")
    place = folder.trackers / "tensorboard" / run.folder.run_id
    accumulator = EventAccumulator(str(place)).Reload()
    [text] = accumulator.Tensors("furnace/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert "| variant | base |" in lines
    assert "| state | failed |" in lines
    assert "| report | https://host/report.html |" in lines
    start = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(start).session_start_info.hparams
    assert hparams["steps"].number_value == 500
    assert hparams["seed"].number_value == 0


def test_tensorboard_is_not_imported_for_nothing(tmp_path):
    """The second pass, with nothing new, loads no library of a tracker."""
    import subprocess
    import sys

    folder, [run] = make_runs(tmp_path, 1)
    run.begin()
    run.train(100)
    mirror(folder, TARGET)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from furnace_hpc.config.cluster import TrackerTarget\n"
        "from furnace_hpc.runs.folder import GridFolder\n"
        "from furnace_hpc.trackers.mirror import mirror\n"
        "mirror(GridFolder(Path(sys.argv[1])), TrackerTarget(to='tensorboard'))\n"
        "print(*({'tensorboard', 'numpy', 'polars', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "\n"
