"""Run folders of attempts with known times, for tests of forecasts and time limits."""

import json
from typing import Any

from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import lifecycle
from furnace_hpc.host.durable_files import append_line
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_atomically, write_json
from furnace_hpc.runs.records.checkpoint_files import note_saved
from furnace_hpc.runs.records.metrics import MetricsFile

START_S, LAUNCH_S, STARTUP_S = 1000.0, 2.0, 10.0
STEP_S, EVALUATION_S, SAVE_S, END_S = 0.5, 3.0, 2.0, 8.0


def measured(
    spec: RunSpec,
    folder: GridFolder,
    step: int,
    reason: str = "done",
    step_s: float = STEP_S,
    every: int = 10,
    **facts: Any,
) -> RunFolder:
    """A run whose only attempt trained up to a step, with a record every ten steps.

    An evaluation of EVALUATION_S follows the record of each multiple of `every`, but not the last.
    """
    run = folder.run(spec.run_id)
    write_atomically(run.spec, spec.model_dump_json())
    number = lifecycle.begin(str(run.path), {"world_size": 1, "nodes": 1, "job_id": None} | facts)
    entered_s = START_S + LAUNCH_S
    entered = {"rank": 0, "verdict": "entered", "unix_s": entered_s}
    append_line(run.verdict(number, 0), json.dumps(entered))
    metrics, now_s = MetricsFile(run.metrics(number)), entered_s + STARTUP_S
    for at in range(10, step + 1, 10):
        now_s += 10 * step_s
        times = {"step_time_s": step_s, "time_unix_s": now_s, "peak_memory_gib": 5.25}
        metrics.write({"step": at, "kind": "train", "train/loss": 1.0} | times)
        if at % every == 0 and at < step:
            metrics.write({"step": at, "kind": "val"})
            now_s += EVALUATION_S
    metrics.close()
    note_saved(run, step, number, SAVE_S)
    ended = {"start_unix_s": START_S, "end_unix_s": now_s + END_S, "reason": reason, "step": step}
    write_json(run.attempt(number), lifecycle.read_attempt(str(run.path), number) | ended)
    return run
