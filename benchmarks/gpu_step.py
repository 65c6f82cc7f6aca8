"""Measure one GPU: FLOPs utilisation, our loop against a plain one, and the cost of ZeRO stages.

    python benchmarks/gpu_step.py --small     a tiny network on any device; writes nothing

This is a part of train_step.py. FLOPs are those of the model: torch's FlopCounterMode counts the
matrix products, convolutions and attention of one forward pass, times three, because backward has
two products for each. Recomputation is not counted. Texts have their full length, so padding does
not count either. Utilisation = FLOPs of a step / its seconds / the card's dense bf16 peak.
"""

import argparse
import os
import statistics
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
    destroy_process_group,
    init_process_group,
)
from furnace_hpc.model.encoders import InputShapes
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
    processes = init_process_group(RankInfo(0, 0, 1, None))
    name = torch.cuda.get_device_name() if processes.device.type == "cuda" else "CPU"
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    config = make_config("zero1", steps=10_000, **COMMON, **size)
    batch = _batch(config, processes.device)
    flops, shares = model_flops(_model(config).to(processes.device), batch)
    ours = {
        stage: _timed(_engine_step(stage, size, batch, processes), processes) for stage in STAGES
    }
    plain = _timed(_plain_step(config, batch, processes), processes)
    seconds, memory_gib = ours["zero1"]
    used = 3 * flops / seconds / peak if peak else None
    samples = config.global_batch_size
    answer: list[dict[str, Any]] = [
        {
            "measure": WHAT.replace("one GPU", name),
            "measured": used and round(used, 3),
            "formula": f"3 x {flops / samples / 1e9:.1f} GFLOP x {samples} samples "
            f"/ {seconds:.4f} s / {peak or 0:.3g}",
            "shares": shares,
            "samples_per_s": round(samples / seconds, 1),
            "goal": f">= {GOAL:.2f}",
            "reached": used is not None and used >= GOAL,
        },
        {
            "measure": "our loop : a plain loop (autocast to bf16, SDPA, fused AdamW)",
            "ratio": round(seconds / plain[0], 3),
            "ours_gib": round(memory_gib, 2),
            "theirs_gib": round(plain[1], 2),
            "goal": "<= 1.0",
            "reached": seconds <= plain[0],
        },
    ]
    for stage, (stage_s, stage_gib) in ours.items():
        answer.append(
            {"measure": stage, "step_ms": round(1e3 * stage_s, 2), "peak_gib": round(stage_gib, 2)}
        )
    destroy_process_group()
    return answer


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


def _batch(config: TrainConfig, device: torch.device) -> dict[str, Any]:
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


def _model(config: TrainConfig) -> FusionModel:
    torch.manual_seed(0)
    return FusionModel(
        config.model,
        InputShapes(30_522, 0, 3, 0, (PIXELS, PIXELS)),
        {"digit": CLASSES},
        config.loss,
    )


def _engine_step(
    stage: str, size: dict[str, Any], batch: dict[str, Any], processes: Processes
) -> Callable[[], Any]:
    config = make_config(stage, steps=10_000, **COMMON, **size)
    config = config.model_copy(
        update={"deepspeed": config.deepspeed.model_copy(update={"activation_checkpointing": None})}
    )
    engine = build_engine(_model(config).to(processes.device), config, processes)

    def step() -> None:
        output = engine(batch["inputs"], {}, batch["present"])
        engine.backward(
            total_loss(output, batch["labels"], batch["present"], config.loss, config.tasks)["loss"]
        )
        engine.step()

    return step


def _plain_step(
    config: TrainConfig, batch: dict[str, Any], processes: Processes
) -> Callable[[], Any]:
    model = _model(config).to(processes.device).train()
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--small", action="store_true", required=True, help="use a tiny network, for a trial"
    )
    parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for row in measure(TINY):
        print("  ".join(f"{key} {value}" for key, value in row.items()))
