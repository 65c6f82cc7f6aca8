"""Find runs whose ranks have failed or hung while their job still runs.

srun may wait for ranks that have ended, for example if nodes cannot reach each other. The guard of
the batch script ends such an srun after some minutes (`host/steps/guard.py`).
"""

import time
from pathlib import Path

from furnace_hpc.host import end_reasons, lifecycle
from furnace_hpc.runs.file_cache import cached_by_stat
from furnace_hpc.runs.folder import RunFolder

# A run that has written metrics since then is not examined, and its job has time to end.
QUIET_S = 60.0


def failure_of_ranks(run: RunFolder, attempt: int) -> str:
    """The failure or hang that ranks of a running attempt have reported. Empty if none has."""
    try:
        quiet_s = time.time() - run.metrics(attempt).stat().st_mtime
    except FileNotFoundError:
        return ""  # it has not trained yet
    if quiet_s < QUIET_S:
        return ""
    return _failure_of_ranks(run, attempt)


def _verdict_files(run: RunFolder, attempt: int) -> list[Path]:
    return sorted(run.verdicts.glob(f"{attempt}-*"))


@cached_by_stat(_verdict_files)
def _failure_of_ranks(run: RunFolder, attempt: int) -> str:
    verdicts = lifecycle.read_verdicts(str(run.path), attempt)
    end = end_reasons.reason_of_ranks(verdicts, {}, {})
    if end is None or end.reason not in (*end_reasons.CAUSES, "hang"):
        return ""
    return f"{end.reason}: {end.error}; its job still runs"
