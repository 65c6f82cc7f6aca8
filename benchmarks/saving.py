"""Measure the cost of a checkpoint, against DeepSpeed's engine.save_checkpoint.

    python benchmarks/saving.py                       740 MB of state, 1 and 2 processes
    python benchmarks/saving.py --layers 11 45        the same, and 3 GB

Ours is written in the background. Goals: training stops for at most 3 % of DeepSpeed's time, the
whole cost is lower, and the checkpoint is durable within DeepSpeed's time, or 0.6 of it with fsync.
A stop is the call that begins a save, and the wait of the next update for the copy. What the copy
slows down beside it is part of the whole cost. The network is in fp32 at stage 1: a layer has 4.2
million parameters, or 67 MB of state. Alternatives take turns, and values are medians. DeepSpeed's
files are neither synced nor hashed. Ours are both.
"""

import argparse
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

WIDTH, BATCH, STEPS = 2048, 32, 12
Times = dict[str, list[float]]


def main() -> None:
    """Measure with 1 and 2 processes, and write the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[11], help="sizes to measure")
    parser.add_argument("--rounds", type=int, default=5, help="saves with each alternative")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes"
    )
    options = parser.parse_args()
    record.begin()
    rows: list[dict[str, Any]] = []
    for layers in options.layers:
        for world_size in options.processes:
            case = {"do": "measure", "layers": layers, "rounds": options.rounds}
            with tempfile.TemporaryDirectory() as folder:
                [times] = run_phases(
                    Path(folder), "saving", [(world_size, [case])], per_case_s=1200
                )
            medians = {name: statistics.median(values) for name, values in times.items()}
            rows += _rows(world_size, layers, medians)
            record.write("saving", rows, "seconds are medians; the temporary folder's file system")


def _rows(world_size: int, layers: int, s: dict[str, float]) -> list[dict[str, Any]]:
    theirs = s["deepspeed"]
    compared = [
        ("training stops", s["stop"], theirs, 0.03),
        ("training stops the first time, with memory to allocate", s["first stop"], theirs, None),
        ("all it costs, in steps that take longer", s["cost"], s["deepspeed cost"], 1.0),
        ("until it is safe on the disk, nothing else going on", s["durable"], theirs, 1.0),
        ("the same, against DeepSpeed's with fsync", s["durable"], s["deepspeed durable"], 0.6),
    ]
    rows = []
    for what, ours, other, goal in compared:
        row = {
            "processes": world_size,
            "state_mb": round(layers * (WIDTH + 1) * WIDTH * 16 / 1e6),
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
    alternatives = Alternatives(processes, folder, case["layers"])
    for _ in range(case["rounds"] + 1):
        alternatives.time_stop()
        alternatives.time_single_saves()
    for _ in range(case["rounds"]):
        alternatives.time_steps_with_saves()
    times = alternatives.times
    singles = zip(times["begin alone"][1:], times["rest"][1:], strict=True)
    times["durable"] = [begin + rest for begin, rest in singles]
    stops = [begin + join for begin, join in zip(times["begin"], times["join"], strict=True)]
    times["first stop"], times["stop"] = stops[:1], stops[1:]
    calm = statistics.median(times["calm steps"])
    times["cost"] = [value - calm for value in times["steps"]]
    times["deepspeed cost"] = [value - calm for value in times["deepspeed steps"]]
    return times


class Alternatives:
    """Our saver and DeepSpeed's save_checkpoint on one engine, and their times."""

    def __init__(self, processes: Any, folder: Path, layers: int) -> None:
        from elastic_work import saver_of

        from furnace_hpc.engine.deepspeed_engine import inner_optimizer
        from furnace_hpc.runs.folder import RunFolder

        self._processes, self._deepspeed_folder = processes, folder / "deepspeed"
        self._engine, self._step = _engine(processes, layers)
        self._step()
        hooked, self._hooks_s = inner_optimizer(self._engine), list[float]()
        # Before and after the saver's own hook, which waits for the copy.
        hooked.register_step_pre_hook(lambda *_: self._hooks_s.append(time.perf_counter()))
        self._saver = saver_of(
            self._engine, RunFolder(folder / "run"), processes, keep_checkpoints=1
        )
        hooked.register_step_pre_hook(lambda *_: self._hooks_s.append(time.perf_counter()))
        self._number = 0
        self.times: Times = {}

    def time_stop(self) -> None:
        """Begin a save, and make a step beside the copy."""
        self._number += 1
        self._timed("begin", self._begin_ours)
        self._hooks_s.clear()
        self._step()
        self.times.setdefault("join", []).append(self._hooks_s[1] - self._hooks_s[0])
        self._saver.wait(self._number)

    def time_single_saves(self) -> None:
        """Save once with each alternative, without steps in between."""
        self._number += 1
        self._step()
        self._timed("deepspeed", self._save_theirs)
        os.sync()
        self._remove_theirs()
        self._timed("begin alone", self._begin_ours)
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


def _engine(processes: Any, layers: int) -> tuple[Any, Callable[[], None]]:
    import deepspeed
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(layers)])
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
