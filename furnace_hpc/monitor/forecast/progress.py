"""What `furnace status` prints below the runs: forecast, held-back runs, shared GPUs."""

import time
from collections import Counter
from collections.abc import Sequence

from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.monitor.forecast.recorded import (
    FORECAST,
    Forecast,
    RunNow,
    compared,
    read_forecast,
)
from furnace_hpc.monitor.grid_status import StatusLine
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.attempts import Attempt, read_attempts
from furnace_hpc.runs.state import RunState

ENDED = (RunState.DONE, RunState.FAILED)


def lines_below(folder: GridFolder, lines: Sequence[StatusLine]) -> list[str]:
    """The lines below the runs of a grid. Empty if there is nothing to add."""
    found = [f"forecast: {text}" for text in _forecast(folder, lines)]
    found += _shared_gpus(lines)
    for line in lines:
        if line.status.state is RunState.FAILED and is_canary(newest_attempt(line)):
            found.append(
                f"the canary {line.run_id} failed, so runs of its kind were held back: "
                f"{printable(' '.join(line.status.reason.split()))}"
            )
    return found


def _shared_gpus(lines: Sequence[StatusLine]) -> list[str]:
    """How running runs share GPUs, as their jobs have found out."""
    running = [line for line in lines if line.status.state is RunState.RUNNING]
    attempts = filter(None, map(newest_attempt, running))
    how = Counter(attempt.gpu_sharing for attempt in attempts if attempt.gpu_sharing)
    return [
        f"{counted(number, 'running run')} with runs_per_gpu: {printable(' '.join(text.split()))}"
        for text, number in how.most_common()
    ]


def is_canary(attempt: Attempt | None) -> bool:
    """Whether an attempt was to stop after a few steps."""
    return attempt is not None and attempt.stop_after_steps is not None


def newest_attempt(line: StatusLine) -> Attempt | None:
    """The newest attempt of a run. None if there is none."""
    return next(reversed(read_attempts(line.folder)), None)


def _forecast(folder: GridFolder, lines: Sequence[StatusLine]) -> list[str]:
    for submission in reversed(folder.all_submissions()):
        forecast = read_forecast(submission / FORECAST)
        if forecast is None:
            continue
        runs = [_run_now(line, forecast) for line in lines if line.run_id in forecast.runs]
        return [compared(forecast, runs)] if runs else []
    return []


def _run_now(line: StatusLine, forecast: Forecast) -> RunNow:
    spent_s = end_unix_s = 0.0
    for attempt in read_attempts(line.folder):
        if attempt.start_unix_s >= forecast.made_unix_s:
            end_unix_s = attempt.end_unix_s or time.time()
            spent_s += max(0.0, end_unix_s - attempt.start_unix_s)
    return RunNow(
        run_id=line.run_id,
        spent_s=spent_s,
        step=line.status.step,
        steps=line.steps,
        has_ended=line.status.state in ENDED,
        is_done=line.status.state is RunState.DONE,
        end_unix_s=end_unix_s,
    )
