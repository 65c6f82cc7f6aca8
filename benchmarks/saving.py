"""Measure the cost of a checkpoint, against DeepSpeed's engine.save_checkpoint.

    python benchmarks/saving.py

Ours is written in the background. Goals: the step stops for at most 10 % of DeepSpeed's time, the
whole cost is lower, and the checkpoint is durable within 1.3 x. The network has 46 million
parameters in fp32 at stage 1: 740 MB of state. Alternatives take turns, and values are medians of
5. DeepSpeed's files are neither synced nor hashed. Ours are both.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from forked_ranks import run_phases

WIDTH, LAYERS, BATCH, ROUNDS, STEPS = 2048, 11, 32, 5, 12
Times = dict[str, list[float]]


def main() -> None:
    """Measure with 1 and 2 processes, and write the ratios."""
    record.begin()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for world_size in (1, 2):
            case = {"do": "measure"}
            [times] = run_phases(
                Path(folder) / str(world_size), "saving", [(world_size, [case])], per_case_s=1200
            )
            rows += _rows(
                world_size, {name: statistics.median(values) for name, values in times.items()}
            )
            record.write("saving", rows, "seconds are medians; the temporary folder's file system")


def _rows(world_size: int, s: dict[str, float]) -> list[dict[str, Any]]:
    theirs = s["deepspeed"]
    compared = [
        ("training stops", s["stop"], theirs, 0.1),
        ("training stops the first time, with memory to allocate", s["first stop"], theirs, None),
        ("all it costs, in steps that take longer", s["cost"], s["deepspeed cost"], 1.0),
        ("until it is safe on the disk, nothing else going on", s["durable"], theirs, 1.3),
        ("the same, against DeepSpeed's with fsync", s["durable"], s["deepspeed durable"], None),
    ]
    rows = []
    for what, ours, other, goal in compared:
        row = {
            "processes": world_size,
            "what": what,
            "ours_s": round(ours, 3),
            "deepspeed_s": round(other, 3),
        }
        row["ratio"] = round(ours / other, 3)
        if goal:
            row |= {"goal": goal, "reached": ours / other <= goal}
        rows.append(row)
    return rows


def measure(processes: Any, folder: Path, case: dict[str, Any]) -> Times:
    """Measure on every rank. Return the times of rank 0."""
    alternatives = Alternatives(processes, folder)
    for _ in range(ROUNDS + 1):
        alternatives.time_single_saves()
    for _ in range(ROUNDS):
        alternatives.time_steps_with_saves()
    times = alternatives.times
    singles = zip(times["stop"][1:], times["rest"][1:], strict=True)
    times["durable"] = [stop + rest for stop, rest in singles]
    times["first stop"] = [times["stop"].pop(0)]
    calm = statistics.median(times["calm steps"])
    times["cost"] = [value - calm for value in times["steps"]]
    times["deepspeed cost"] = [value - calm for value in times["deepspeed steps"]]
    return times


class Alternatives:
    """Our saver and DeepSpeed's save_checkpoint on one engine, and their times."""

    def __init__(self, processes: Any, folder: Path) -> None:
        from elastic_work import saver_of

        from furnace_hpc.runs.folder import RunFolder

        self._processes, self._deepspeed_folder = processes, folder / "deepspeed"
        self._engine, self._step = _engine(processes)
        self._saver = saver_of(
            self._engine, RunFolder(folder / "run"), processes, keep_checkpoints=1
        )
        self._number = 0
        self.times: Times = {}

    def time_single_saves(self) -> None:
        """Save once with each alternative, without steps in between."""
        self._number += 1
        self._step()
        self._timed("deepspeed", self._save_theirs)
        os.sync()
        self._remove_theirs()
        self._timed("stop", self._begin_ours)
        self._timed("rest", self._finish_ours)
        self._saver.wait(self._number)
        self._timed("deepspeed durable", self._save_theirs_durably)
        self._remove_theirs()

    def time_steps_with_saves(self) -> None:
        """Time steps without a save, with ours, and with DeepSpeed's."""
        self._number += 1
        self._timed("calm steps", lambda: self._steps(lambda: None))
        self._timed("steps", self._steps_with_ours)
        self._number += 1
        self._timed("deepspeed steps", lambda: self._steps(self._save_theirs))
        self._remove_theirs()

    def _timed(self, name: str, work: Callable[[], Any]) -> None:
        self._processes.barrier()
        started_s = time.perf_counter()
        work()
        self._processes.barrier()
        self.times.setdefault(name, []).append(time.perf_counter() - started_s)

    def _save_theirs(self) -> None:
        self._engine.save_checkpoint(
            str(self._deepspeed_folder), tag=f"step-{self._number}", client_state={}
        )

    def _save_theirs_durably(self) -> None:
        self._save_theirs()
        if not self._processes.is_rank_zero:
            return
        for path in self._deepspeed_folder.rglob("*.pt"):
            with path.open("rb+") as file:
                os.fsync(file.fileno())

    def _remove_theirs(self) -> None:
        if self._processes.is_rank_zero:
            shutil.rmtree(self._deepspeed_folder)

    def _begin_ours(self) -> None:
        self._saver.begin({"step": self._number})

    def _advance(self) -> None:
        """Take the saver's next step, if the threads of all ranks have finished."""
        if not int(self._processes.all_reduce_max(self._saver.busy)[0]):
            self._saver.advance(self._number)

    def _finish_ours(self) -> None:
        while self._saver.saved != self._number:
            time.sleep(0.005)
            self._advance()

    def _steps(self, save: Callable[[], None]) -> None:
        for index in range(STEPS // self._processes.world_size):
            self._step()
            self._advance()
            if index == 0:
                save()

    def _steps_with_ours(self) -> None:
        self._steps(self._begin_ours)
        self._saver.wait(self._number)


def _engine(processes: Any) -> tuple[Any, Callable[[], None]]:
    import deepspeed
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    config = {
        "train_micro_batch_size_per_gpu": BATCH // processes.world_size,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": 1},
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )
    x = torch.randn(BATCH // processes.world_size, WIDTH)

    def step() -> None:
        engine.backward(engine(x).square().mean())
        engine.step()

    return engine, step


if __name__ == "__main__":
    main()
