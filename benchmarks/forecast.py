"""Compare the forecast after a canary with what the runs then need.

python benchmarks/forecast.py [--seeds 2] [--small]    goal: both ratios are in the range

It trains the article's ablation with `furnace submit --canary` in the local queue. The forecast is
that of the submission after the canaries. Ratios are measured / forecast: of the time of all runs,
and of the time until the last run ended. With --small: 60 steps, on a small pack.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import record

from furnace_hpc.data.sets.tridigits.pack import pack
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs
from furnace_hpc.monitor.forecast.recorded import FORECAST, Forecast, read_forecast
from furnace_hpc.monitor.forecast.spread import Spread
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.attempts import Attempt, read_attempts


def main() -> None:
    """Train the grid, and write both ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    record.begin()
    with tempfile.TemporaryDirectory() as work:
        _submit(Path(work), asked.seeds, asked.small)
        folder = GridFolder(Path(work) / "runs" / "ablation")
        forecast = _newest_forecast(folder)
        attempts = [
            attempt
            for run_id in forecast.runs
            for attempt in read_attempts(folder.run(run_id))
            if attempt.start_unix_s >= forecast.made_unix_s
        ]
        assert all(attempt.reason == "done" for attempt in attempts), attempts
        assert len(attempts) == len(forecast.runs)
    end_s = max(_end_s(attempt) for attempt in attempts) - forecast.made_unix_s
    spent_s = sum(_end_s(attempt) - attempt.start_unix_s for attempt in attempts)
    rows = [
        _row("time of all runs", forecast.total(), spent_s),
        _row("time until the last run ended", forecast.elapsed, end_s),
    ]
    note = (
        f"{len(attempts)} runs after the canaries of {forecast.measured_runs} kinds, "
        f"{forecast.parallel[0]} at a time, load of the machine {os.getloadavg()[1]:.1f}"
    )
    record.write("forecast", rows, note)


def _submit(place: Path, seeds: int, small: bool) -> None:
    words = [sys.executable, "-m", "furnace_hpc.submit", "--grid", "ablation", "--cluster", "local"]
    words += ["--canary", "--runs-root", str(place / "runs"), "--data-root", str(place / "data")]
    for seed in range(seeds):
        words += ["--seed", str(seed)]
    if small:
        pack(TriDigitsKnobs(train=240, val=60, test=90), place / "data" / "tridigits", _silent)
        words += ["--set", "steps=60", "--set", "evaluation.every=20"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=place)
    # 1: the table lacks the seeds that were not chosen
    assert done.returncode in (0, 1), done.stdout + done.stderr


def _silent(what: str, done: int, total: int) -> None:
    pass


def _newest_forecast(folder: GridFolder) -> Forecast:
    found = [read_forecast(path / FORECAST) for path in folder.all_submissions()]
    known = [forecast for forecast in found if forecast]
    print(known[-1].describe())
    return known[-1]


def _end_s(attempt: Attempt) -> float:
    assert attempt.end_unix_s is not None
    return attempt.end_unix_s


def _row(what: str, forecast: Spread, measured_s: float) -> dict[str, object]:
    return {
        "what": what,
        "forecast_s": round(forecast.mid, 1),
        "low_s": round(forecast.low, 1),
        "high_s": round(forecast.high, 1),
        "measured_s": round(measured_s, 1),
        "ratio": round(measured_s / forecast.mid, 3),
        "goal": "in the range",
        "reached": bool(forecast.low <= measured_s <= forecast.high),
    }


if __name__ == "__main__":
    main()
