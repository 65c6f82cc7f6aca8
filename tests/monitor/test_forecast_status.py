"""What `status` prints below the runs: the forecast of the newest submission, a failed canary."""

import json
import time

from login_study import begin, command, end, grid, planned, specs
from measured_runs import measured

from furnace_hpc.launch.submission import write_submission
from furnace_hpc.monitor.forecast.progress import lines_below
from furnace_hpc.monitor.grid_status import overview
from furnace_hpc.runs.folder import GridFolder, write_json
from furnace_hpc.runs.journal import submissions


def test_status_compares_forecast_and_reality(tmp_path):
    """One run is measured. Another one is to take 32 s, and has failed after a minute."""
    tmp_path.chmod(0o700)
    folder, runs = GridFolder(tmp_path / "study"), specs()
    measured(runs[0], folder, 40, "time_limit")
    write_submission(planned(tmp_path, grid()))
    [submission] = submissions(folder)
    file = submission.path / "forecast.json"
    content = json.loads(file.read_text())
    # `full` has other loss terms than `base`, which is measured
    assert set(content["runs"]) == {run.run_id for run in runs[:2]}
    assert content["num_unknown"] == 2
    # 10 s to start, 40 steps of 0.5 s, and 2 s until the ranks start. The end is not known.
    expected = content["runs"][runs[1].run_id]
    assert expected["seconds"][1] == 32
    alone = {"runs": {runs[1].run_id: expected}, "parallel": [1]}
    write_json(file, content | alone | {"made_unix_s": time.time() - 60})
    run = begin(runs[1], folder)
    [line] = lines_below(folder, overview(folder)[0])
    forecast = "forecast: 0.53 min (0.45 to 0.61) until the last run ends, "
    assert line.startswith(f"{forecast}now expected 1.")
    end(run, "crash")
    [line] = lines_below(folder, overview(folder)[0])
    assert line.startswith(f"{forecast}it took 1.")


def test_status_names_a_failed_canary(tmp_path):
    write_submission(planned(tmp_path / "runs", grid()))
    run = begin(specs()[0], GridFolder(tmp_path / "runs" / "study"), stop_after_steps=20)
    end(run, "crash", error="ValueError: no such column")
    said = command("status", tmp_path, "--grid", "study").stdout
    assert said.splitlines()[-1] == (
        f"the canary {run.run_id} failed, so runs of its kind were held back: ValueError: no such "
        "column"
    )
