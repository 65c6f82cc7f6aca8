"""Runs that train, end, and are requeued, for the tests of trackers."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from tables_study import result_of, study

from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host.durable_files import append_line
from furnace_hpc.runs.folder import GridFolder, RunFolder, write_atomically, write_json
from furnace_hpc.runs.records.metrics import MetricsFile, read_metrics
from furnace_hpc.runs.records.result import write_result

LOG_EVERY, EVALUATE_EVERY, SAVE_EVERY = 10, 50, 40
NOT_SENT = {"step", "kind", "attempt", "time_unix_s"}


@dataclass
class TrainedRun:
    """A run folder, as training and the host write it. Its clock is its own."""

    spec: RunSpec
    folder: RunFolder
    clock_s: float = 1_700_000_000.0
    attempt: int = 0
    step: int = 0
    saved: int = 0
    scale: float = 1.0
    begun_s: float = 0.0
    metrics: MetricsFile | None = field(default=None, repr=False)

    def begin(self) -> None:
        """Start an attempt from the newest checkpoint."""
        if not self.folder.spec.exists():
            write_atomically(self.folder.spec, self.spec.model_dump_json())
        self.attempt, self.step = self.attempt + 1, self.saved
        self.begun_s = self.clock_s
        self._write_attempt()
        self.metrics = MetricsFile(self.folder.metrics(self.attempt))

    def train(self, steps: int) -> None:
        """Write the lines of these steps. Checkpoints are saved on the way."""
        for _ in range(steps // LOG_EVERY):
            self.step += LOG_EVERY
            self.clock_s += 1 + random.random()
            record = {
                "step": self.step,
                "kind": "train",
                "train/loss": self.scale / self.step,
                "lr": 1e-3,
                "step_time_s": random.random(),
                "grad_norm": None,
                "time_unix_s": self.clock_s,
            }
            self.metrics.write(record)
            if self.step % EVALUATE_EVERY == 0:
                value = self.scale * self.step / 1000
                self.metrics.write({"step": self.step, "kind": "val", "val/digit/accuracy": value})
            if self.step % SAVE_EVERY == 0:
                self.saved = self.step
                line = {"step": self.step, "attempt": self.attempt}
                append_line(self.folder.saved, json.dumps(line))

    def end(self, reason: str) -> None:
        self.metrics.close()
        self._write_attempt({"end_unix_s": self.clock_s, "reason": reason, "step": self.step})

    def finish(self) -> None:
        self.metrics.close()
        write_result(self.folder, result_of(self.spec, steps=self.step, attempts=self.attempt))
        self._write_attempt({"end_unix_s": self.clock_s, "reason": "done", "step": self.step})

    def _write_attempt(self, ended: dict | None = None) -> None:
        begun = {"attempt": self.attempt, "start_unix_s": self.begun_s, "gpus": 2}
        write_json(self.folder.attempt(self.attempt), begun | (ended or {}))


def make_runs(root: Path, count: int = 20) -> tuple[GridFolder, list[TrainedRun]]:
    """A grid's folder without runs, and runs that have not started."""
    _, specs = study()
    folder = GridFolder(root / "study")
    folder.path.mkdir(parents=True)
    return folder, [TrainedRun(spec, folder.run(spec.run_id)) for spec in specs[:count]]


def counted(run: RunFolder) -> dict[tuple[str, int], float]:
    """(name, step) -> number that counts, from the reader of the run folder."""
    return {
        (name, record["step"]): value
        for record in read_metrics(run)
        for name, value in record.items()
        if name not in NOT_SENT and isinstance(value, int | float)
    }
