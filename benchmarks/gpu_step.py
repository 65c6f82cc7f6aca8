"""Measure one GPU: FLOPs utilisation, our loop against a plain one, and the cost of ZeRO stages.

    python benchmarks/gpu_step.py             measure the GPU
    python benchmarks/gpu_step.py --small     a tiny network on any device, for a trial

It prints rows and writes nothing. train_step.py writes them. Each measurement runs in a child
process, so peaks of memory are its own.

FLOPs are those of the model: torch's FlopCounterMode counts the matrix products, convolutions and
attention of one forward pass, times three, because backward has two products for each.
Recomputation is not counted. Texts have their full length, so padding does not count either.
Utilisation = FLOPs of a step / its seconds / the card's dense bf16 peak.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from make import make_config

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.deepspeed_engine import build_engine
from furnace_hpc.engine.ranks.distributed import (
    Processes,
    RankInfo,
    init_process_group,
)
from furnace_hpc.engine.setup import set_up_torch
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

# dense bf16 FLOP/s, NVIDIA's data sheets (SXM modules)
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
BASE: dict[str, Any] = {"model__width": 768, "model__num_heads": 12, "model__feedforward": 3072}
BASE |= {
    "model__text_layers": 12,
    "model__image_layers": 12,
    "model__image_patch": 16,
    "global_batch_size": 64,
}
TINY: dict[str, Any] = {
    "model__width": 32,
    "model__feedforward": 64,
    "model__image_patch": 16,
    "global_batch_size": 4,
}
COMMON: dict[str, Any] = {
    "model__modalities": ("text", "image"),
    "model__image_encoder": "vit",
    "model__fusion_layers": 2,
}
STAGES = ("zero1", "zero2", "zero3")
GOAL, TOKENS, PIXELS, CLASSES, STEPS = 0.40, 128, 224, 23, 20
ANSWER = "ANSWER "  # begins the line that a child prints
WHAT = "bf16 model-FLOPs utilisation, BERT-base + ViT-B at 224 px, one GPU"


def rows() -> list[dict[str, Any]]:
    """Measure the GPU. Without a GPU, return one row that says so."""
    if not torch.cuda.is_available():
        return [
            {
                "measure": WHAT,
                "measured": None,
                "goal": f">= {GOAL:.2f}",
                "why": "no GPU is at hand",
            }
        ]
    return measure(BASE)


def measure(size: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure a network of this size on the available device."""
    found = {part: _measure_in_child(part, size is TINY) for part in ("plain", *STAGES)}
    ours, plain = found["zero1"], found["plain"]
    name, peak, flops = plain["device"], plain["peak_flops"], plain["flops"]
    samples, seconds = size["global_batch_size"], ours["step_s"]
    used = 3 * flops / seconds / peak if peak else None
    answer: list[dict[str, Any]] = [
        {
            "measure": WHAT.replace("one GPU", name),
            "measured": used and round(used, 3),
            "formula": f"3 x {flops / samples / 1e9:.1f} GFLOP x {samples} samples "
            f"/ {seconds:.4f} s / {peak or 0:.3g}",
            "shares": plain["shares"],
            "samples_per_s": round(samples / seconds, 1),
            "goal": f">= {GOAL:.2f}",
            "reached": used is not None and used >= GOAL,
        },
        {
            "measure": "our loop : a plain loop (autocast to bf16, SDPA, fused AdamW)",
            "ratio": round(seconds / plain["step_s"], 3),
            "ours_gib": round(ours["peak_gib"], 2),
            "theirs_gib": round(plain["peak_gib"], 2),
            "goal": "<= 1.0",
            "reached": seconds <= plain["step_s"],
        },
    ]
    for stage in STAGES:
        step_ms, peak_gib = 1e3 * found[stage]["step_s"], found[stage]["peak_gib"]
        row = {"measure": stage, "step_ms": round(step_ms, 2), "peak_gib": round(peak_gib, 2)}
        answer.append(row)
    return answer


def _measure_in_child(part: str, small: bool) -> dict[str, Any]:
    """Measure one part in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part]
    if small:
        command.append("--small")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if done.returncode or not lines:
        raise RuntimeError(f"{part} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(lines[-1].removeprefix(ANSWER)))


def measure_part(part: str, size: dict[str, Any]) -> dict[str, Any]:
    """Measure the plain loop or one stage in this process, set up as a run is."""
    processes = init_process_group(RankInfo(0, 0, 1, None))
    config = config_of("zero1" if part == "plain" else part, size)
    set_up_torch(config)
    batch = make_batch(config, processes.device)
    answer: dict[str, Any] = {}
    if part == "plain":
        name = "CPU"
        if processes.device.type == "cuda":
            name = torch.cuda.get_device_name()
        flops, shares = model_flops(make_model(config).to(processes.device), batch)
        peak = next((value for key, value in PEAKS.items() if key in name), None)
        answer |= {"device": name, "peak_flops": peak, "flops": flops, "shares": shares}
        step = _plain_step(config, batch, processes)
    else:
        step = _engine_step(config, batch, processes)
    step_s, peak_gib = _timed(step, processes)
    return answer | {"step_s": step_s, "peak_gib": peak_gib}


def config_of(stage: str, size: dict[str, Any], **changes: Any) -> TrainConfig:
    """The config of a stage, without activation checkpointing."""
    config = make_config(stage, steps=10_000, **COMMON, **(size | changes))
    deepspeed = config.deepspeed.model_copy(update={"activation_checkpointing": None})
    return config.model_copy(update={"deepspeed": deepspeed})


def model_flops(model: FusionModel, batch: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the FLOPs of a batch's forward pass, and the shares of each encoder and the rest."""
    with FlopCounterMode(model, depth=4, display=False) as counter, torch.no_grad():
        model.eval()(batch["inputs"], {}, batch["present"])
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = counter.get_total_flops()
    shares = {
        m: round(counts.get(f"FusionModel.encoders.{m}", 0) / total, 3) for m in model.modalities
    }
    return total, shares | {"fusion and heads": round(1 - sum(shares.values()), 3)}


def make_batch(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Random inputs and labels. All texts have their full length."""
    torch.manual_seed(0)
    number = config.global_batch_size
    inputs = {
        "text": torch.randint(1, 30_000, (number, TOKENS)),
        "image": torch.randn(number, 3, PIXELS, PIXELS),
    }
    return {
        "inputs": {name: tensor.to(device) for name, tensor in inputs.items()},
        "present": torch.ones(number, 2, dtype=torch.bool, device=device),
        "labels": {"digit": torch.randint(0, CLASSES, (number,)).to(device)},
    }


def make_model(config: TrainConfig) -> FusionModel:
    """The network, with the same weights every time."""
    torch.manual_seed(0)
    return FusionModel(
        config.model,
        InputShapes(30_522, 0, 3, 0, (PIXELS, PIXELS)),
        {"digit": CLASSES},
        config.loss,
    )


def _engine_step(
    config: TrainConfig, batch: dict[str, Any], processes: Processes
) -> Callable[[], Any]:
    engine = build_engine(make_model(config).to(processes.device), config, processes)

    def step() -> None:
        output = engine(batch["inputs"], {}, batch["present"])
        parts = total_loss(output, batch["labels"], batch["present"], config.loss, config.tasks)
        engine.backward(parts["loss"])
        engine.step()

    return step


def _plain_step(
    config: TrainConfig, batch: dict[str, Any], processes: Processes
) -> Callable[[], Any]:
    model = make_model(config).to(processes.device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.optimizer.lr, weight_decay=0.01, fused=True
    )

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(processes.device.type, torch.bfloat16):
            output = model(batch["inputs"], {}, batch["present"])
            loss = total_loss(output, batch["labels"], batch["present"], config.loss, config.tasks)[
                "loss"
            ]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()

    return step


def _timed(step: Callable[[], Any], processes: Processes) -> tuple[float, float]:
    """Return the median seconds of a step and the peak memory in GiB (0 without a GPU)."""
    on_gpu = processes.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(STEPS + 5):
        start_s = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start_s)
    return statistics.median(
        seconds[5:]
    ), torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0


def main() -> None:
    """Print the rows, or the answer of one child."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a tiny network, for a trial")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    size = TINY if options.small else BASE
    if options.part:
        print(ANSWER + json.dumps(measure_part(options.part, size)), flush=True)
        return
    found = measure(TINY) if options.small else rows()
    for row in found:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
