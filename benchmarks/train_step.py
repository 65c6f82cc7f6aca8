"""Measure the cost of a training step, against bare DeepSpeed, PyTorch DDP and the article's form.

    python benchmarks/train_step.py     two gloo ranks, fp32, stage 1; about ten quiet minutes

Pairs of steps are interleaved in one process group, so that noise affects both alike. Ratios are
medians of pairs, with a 95 % interval by bootstrap over the pairs. The article's form is corrected
except for one thing: its loss runs the encoders again.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gpu_step
import numpy as np
import record
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import forked_ranks
from make import make_config

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.sampler import rank_indices, step_indices
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.deepspeed_engine import build_engine
from furnace_hpc.engine.loop import train_batches, train_step
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

PAIRS = 12
BIG = {
    "model__width": 256,
    "model__num_heads": 8,
    "model__feedforward": 1024,
    "model__text_layers": 6,
}
BIG |= {"model__fusion_layers": 4, "global_batch_size": 64, "loss__alpha": 0.5, "loss__beta": 0.3}
SMALL = {"global_batch_size": 8, "loss__alpha": 0.5, "loss__beta": 0.3}
SIZES: dict[str, dict[str, Any]] = {"big": BIG, "small": SMALL}
Step = Callable[[int], Any]


def main() -> None:
    """Measure and write `results/train_step.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of steps per ratio")
    parser.add_argument(
        "--sizes", nargs="+", default=list(SIZES), choices=SIZES, help="models to measure"
    )
    options = parser.parse_args()
    record.begin()
    from train_step import ratios  # the module name under which ranks import it

    with tempfile.TemporaryDirectory() as folder:
        data = _pack(Path(folder) / "tridigits")
        forked_ranks.START_S = 1800  # measuring takes longer than a test may
        answers = forked_ranks.run_on_ranks(
            ratios, 2, Path(folder) / "ranks", data, options.pairs, options.sizes
        )[0]
    rows = [_row(*answer) for answer in answers] + [_kept_bytes(), *gpu_step.rows()]
    record.write(
        "train_step", rows, "ratios of seconds per step; medians over interleaved pairs on rank 0"
    )


def ratios(
    processes: Processes, data: str, pairs: int, sizes: list[str]
) -> list[tuple[str, str, list[float], list[float]]]:
    """(measure, goal, our seconds, their seconds) of each comparison, on this rank."""
    torch.set_num_threads(1)
    answers = []
    for size in sizes:
        config = make_config("zero1_fp32", steps=10_000, **SIZES[size])
        with ExitStack() as stack:
            ours, bare = _engine_steps(config, data, processes, stack)
            others = {
                "DDP": (_ddp_step(config, data, processes, encode_twice=False), "1.05"),
                "the article's form": (
                    _ddp_step(config, data, processes, encode_twice=True),
                    "1.0",
                ),
                "bare DeepSpeed": (bare, "1.02"),
            }
            for name, (theirs, goal) in others.items():
                seconds = _interleaved(
                    ours, theirs, pairs if size == "big" else 10 * pairs, processes
                )
                answers.append(
                    (f"{size} model, our loop : {name}", goal if size == "big" else "", *seconds)
                )
    return answers


def _interleaved(
    ours: Step, theirs: Step, pairs: int, processes: Processes
) -> tuple[list[float], list[float]]:
    """Seconds of each step. The order within a pair alternates."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(-2, pairs):
        for mine in (True, False) if pair % 2 else (False, True):
            processes.barrier()
            start_s = time.perf_counter()
            (ours if mine else theirs)(pair + 2)
            if pair >= 0:
                seconds[mine].append(time.perf_counter() - start_s)
    return seconds[True], seconds[False]


def _engine_steps(
    config: TrainConfig, data: str, processes: Processes, stack: ExitStack
) -> tuple[Step, Step]:
    """A step of our loop, and one of a loop with only the calls of DeepSpeed's tutorial."""
    from rank_work import model_of, reader_of

    reader = reader_of(data, "train", processes)
    engine = build_engine(model_of(config, data), config, processes)
    other = build_engine(model_of(config, data), config, processes)

    def bare(step: int) -> float:
        batch = reader.read(_mine(config, reader.num_samples, step, processes))
        output = other(batch.inputs, batch.lengths, batch.present_BM)
        loss = total_loss(output, batch.labels, batch.present_BM, config.loss, config.tasks)["loss"]
        other.backward(loss)
        other.step()
        return float(loss)

    batches = stack.enter_context(train_batches(engine, reader, config, processes))

    def ours(step: int) -> float:
        return float(train_step(engine, batches, config, step)["loss"])

    return ours, bare


class _EncodesTwice(nn.Module):
    """The article's form: the loss calls the encoders for features again."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, lengths: Any, present_BM: Any) -> dict[str, Any]:
        output = self.model(inputs, lengths, present_BM)
        tokens, masks = self.model._encode(inputs, lengths, present_BM)
        again = [
            (part * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
            for part, mask in zip(tokens, masks, strict=True)
        ]
        return output | {"features": torch.stack(again, dim=1)}


def _ddp_step(config: TrainConfig, data: str, processes: Processes, encode_twice: bool) -> Step:
    from rank_work import model_of, reader_of
    from torch.nn.parallel import DistributedDataParallel

    plain, reader = model_of(config, data), reader_of(data, "train", processes)
    model = DistributedDataParallel(_EncodesTwice(plain) if encode_twice else plain)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.optimizer.lr, weight_decay=0.01, fused=True
    )

    def step(number: int) -> float:
        batch = reader.read(_mine(config, reader.num_samples, number, processes))
        optimizer.zero_grad()
        output = model(batch.inputs, batch.lengths, batch.present_BM)
        loss = total_loss(output, batch.labels, batch.present_BM, config.loss, config.tasks)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def _mine(config: TrainConfig, num_samples: int, step: int, processes: Processes) -> np.ndarray:
    indices = step_indices(num_samples, config.seed, step, config.global_batch_size)
    return rank_indices(
        indices, processes.rank, processes.world_size, len(indices) // processes.world_size, 0
    )


def _row(measure: str, goal: str, ours: list[float], theirs: list[float]) -> dict[str, object]:
    quotients = np.array(ours) / np.array(theirs)
    draws = np.random.default_rng(0).choice(quotients, (2000, len(quotients)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    ratio = float(np.median(quotients))
    row: dict[str, object] = {
        "measure": measure,
        "ratio": round(ratio, 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
    }
    row |= {
        "ours_ms": round(1e3 * statistics.median(ours), 1),
        "theirs_ms": round(1e3 * statistics.median(theirs), 1),
    }
    row["pairs"] = len(ours)
    if goal:
        row |= {"goal": f"<= {goal}", "reached": ratio <= float(goal)}
    else:
        row["fixed_ms_per_step"] = round(
            1e3 * (statistics.median(ours) - statistics.median(theirs)), 2
        )
    return row


def _kept_bytes() -> dict[str, object]:
    """Ratio of bytes kept for backward with and without activation checkpointing, and its cost."""
    from torch.utils.checkpoint import checkpoint

    kept, seconds = {}, {}
    for on in (False, True):
        config = make_config("zero1_fp32", **BIG)
        seed_everything(0)
        model = FusionModel(config.model, InputShapes(60, 0, 1, 40), {"digit": 10}).train()
        if on:
            model.checkpoint_activations(
                lambda function, *args: checkpoint(function, *args, use_reentrant=False)
            )
        inputs = {"text": torch.randint(1, 60, (8, 64)), "image": torch.randn(8, 1, 32, 32)}
        inputs["audio"] = torch.randn(8, 40, 32)
        seen: dict[int, int] = {}
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def pack(
            tensor: torch.Tensor, seen: dict[int, int] = seen, own: set[int] = own
        ) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        times = []
        for _ in range(3):
            start_s = time.perf_counter()
            seen.clear()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output = model(inputs, {}, torch.ones(8, 3, dtype=torch.bool))
            kept[on] = sum(seen.values())
            output["logits"]["digit"].square().mean().backward()
            times.append(time.perf_counter() - start_s)
        seconds[on] = statistics.median(times[1:])
    ratio = kept[True] / kept[False]
    row: dict[str, object] = {
        "measure": "bytes kept by forward, checkpointing on : off",
        "ratio": round(ratio, 3),
    }
    row |= {"on_mib": round(kept[True] / 2**20, 1), "off_mib": round(kept[False] / 2**20, 1)}
    row["step time on : off"] = round(seconds[True] / seconds[False], 2)
    return row | {"goal": "<= 0.35", "reached": ratio <= 0.35}


def _pack(folder: Path) -> Path:
    from furnace_hpc.data.sets.tridigits.pack import pack
    from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

    pack(TriDigitsKnobs(train=640, val=20, test=20), folder, lambda what, done, total: None)
    return folder


if __name__ == "__main__":
    main()
