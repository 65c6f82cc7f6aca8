"""What a checkpoint costs the training: ours, written in the background, against DeepSpeed's engine.save_checkpoint.

python benchmarks/saving.py      goals: the step stops for at most 10 %, all in all it costs less, durable within 1.3 x

A network of 46 million parameters in fp32 at stage 1: 740 MB of state. Alternatives take turns; medians of 5. The files
of DeepSpeed are neither made durable nor hashed; ours are both.
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
    """Done by every rank: times of rank 0."""
    from elastic_work import saver_of

    from furnace_hpc.runs.folder import RunFolder

    engine, step = _engine(processes)
    saver = saver_of(engine, RunFolder(folder / "run"), processes, keep_checkpoints=1)
    times: Times = {}
    number = 0

    def timed(name: str, work: Callable[[], Any]) -> None:
        processes.barrier()
        started_s = time.perf_counter()
        work()
        processes.barrier()
        times.setdefault(name, []).append(time.perf_counter() - started_s)

    def theirs(durable: bool = False) -> None:
        engine.save_checkpoint(str(folder / "deepspeed"), tag=f"step-{number}", client_state={})
        if durable and processes.is_rank_zero:
            for path in (folder / "deepspeed").rglob("*.pt"):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())

    def ours() -> None:
        saver.begin({"step": number})

    def named() -> None:
        while saver.saved != number:
            time.sleep(0.005)
            if not int(processes.all_reduce_max(saver.busy)[0]):
                saver.advance(number)

    def rest() -> None:
        saver.wait(number)

    for _ in range(ROUNDS + 1):
        number += 1
        step()
        timed("deepspeed", theirs)
        os.sync()
        if processes.is_rank_zero:
            shutil.rmtree(folder / "deepspeed")
        timed("stop", ours)
        timed("rest", named)
        rest()
        timed("deepspeed durable", lambda: theirs(durable=True))
        if processes.is_rank_zero:
            shutil.rmtree(folder / "deepspeed")
    times["durable"] = [
        stop + rest for stop, rest in zip(times["stop"][1:], times["rest"][1:], strict=True)
    ]
    times["first stop"] = [times["stop"].pop(0)]

    def steps(save: Callable[[], None]) -> None:
        for index in range(STEPS // processes.world_size):
            step()
            if not int(processes.all_reduce_max(saver.busy)[0]):
                saver.advance(number)
            if index == 0:
                save()

    def cleared(save: Callable[[], None]) -> None:
        steps(save)
        rest()

    for _ in range(ROUNDS):
        number += 1
        timed("calm steps", lambda: steps(lambda: None))
        timed("steps", lambda: cleared(ours))
        number += 1
        timed("deepspeed steps", lambda: steps(theirs))
        if processes.is_rank_zero:
            shutil.rmtree(folder / "deepspeed")
    calm = statistics.median(times["calm steps"])
    times["cost"] = [value - calm for value in times["steps"]]
    times["deepspeed cost"] = [value - calm for value in times["deepspeed steps"]]
    return times


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
