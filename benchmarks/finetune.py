"""Measure a training step with frozen encoders and with adapters, against full fine-tuning.

    python benchmarks/finetune.py           BERT and ViT of six layers; about ten quiet minutes
    python benchmarks/finetune.py --small   a try in two minutes; it records nothing

Each kind of training has a process of its own on one core, so that its peak memory is its own. The
steps of the kinds are not interleaved, so run it on a quiet machine. On a CPU the peak is resident
memory, without what the process had before it built the network.

The steps of `finetune_steps.py` are made in turn: cached features, and a network of own code.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import finetune_steps
import record

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

LORA = {"lora": {"rank": 8}}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen": {"model__text": {"freeze": "all"}, "model__image": {"freeze": "all"}},
    "half": {"model__text": {"freeze": 3}, "model__image": {"freeze": 3}},
    "lora": {"model__text": LORA, "model__image": LORA},
    "recomputed": {
        "model__text": {"gradient_checkpointing": True},
        "model__image": {"gradient_checkpointing": True},
    },
}
SIZE: dict[str, Any] = {
    "model__modalities": ["text", "image"],
    "model__width": 256,
    "model__num_heads": 8,
    "model__feedforward": 1024,
    "model__text_layers": 6,
    "model__image_encoder": "vit",
    "model__image_layers": 6,
    "global_batch_size": 32,
}
SMALL = SIZE | {"model__width": 64, "model__feedforward": 128, "global_batch_size": 8}
TOKENS, PIXELS, WARM = 64, 64, 2
IN_TURNS = {
    "cached_features": finetune_steps.cached_features,
    "own_network": finetune_steps.own_network,
}
GOAL = 2.0  # frozen encoders, times as fast


def main() -> None:
    """Measure and write `results/finetune.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each kind")
    parser.add_argument("--small", action="store_true", help="a small network, not recorded")
    parser.add_argument("--kind", choices=(*KINDS, *IN_TURNS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind in IN_TURNS:
        size = SMALL if options.small else SIZE
        print(json.dumps(IN_TURNS[options.kind](size, options.steps)))
        return
    if options.kind:
        print(json.dumps(measured(options.kind, options.steps, options.small)))
        return
    if options.small:
        os.environ["RECORD"] = "no"
    record.begin()
    found = {kind: answer_of(kind, options) for kind in KINDS}
    rows = [row_of(kind, found[kind], found["full"]) for kind in KINDS]
    for kind in IN_TURNS:
        rows += answer_of(kind, options)
    for number, seeds in ((1000, 1), (200, 5)):
        rows += finetune_steps.dry_run(3 if options.small else 7, number, seeds)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    note = "seconds per step are medians; one process, one core, ZeRO 1; load averages at the end "
    record.write("finetune", rows, f"{note}{load}")


def answer_of(kind: str, options: argparse.Namespace) -> Any:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--kind", kind, "--steps", str(options.steps)]
    command += ["--small"] * options.small
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def row_of(kind: str, found: dict[str, Any], full: dict[str, Any]) -> dict[str, object]:
    """The row of a kind, compared with full fine-tuning."""
    times = full["step_s"] / found["step_s"]
    row = {
        "measure": f"{kind} : full fine-tuning",
        "times_as_fast": round(times, 2),
        "step_ms": round(1e3 * found["step_s"], 1),
        "peak_mib": round(found["peak_bytes"] / 2**20),
        "state_mib": round(found["state_bytes"] / 2**20, 2),
        "trainable": found["trainable"],
        "parameters": found["parameters"],
    }
    if kind == "frozen":
        row |= {"goal": f">= {GOAL} x", "reached": times >= GOAL}
    return row


def measured(kind: str, steps: int, is_small: bool) -> dict[str, Any]:
    """Seconds per step and memory of one kind, in this process."""
    import torch
    from fine_tune_work import state_bytes
    from make import make_config
    from rank_work import FP32

    from furnace_hpc.engine.checkpoint.random_state import seed_everything
    from furnace_hpc.engine.deepspeed_engine import build_engine, place
    from furnace_hpc.engine.ranks.distributed import RankInfo, init_process_group
    from furnace_hpc.model.encoders.input_shapes import InputShapes
    from furnace_hpc.model.network import FusionModel

    size = SMALL if is_small else SIZE
    config = make_config("zero1", **FP32, **size, **KINDS[kind])
    with tempfile.TemporaryDirectory() as folder:
        processes = init_process_group(RankInfo(0, 0, 1, Path(folder) / "rendezvous"))
    before = peak_bytes()
    seed_everything(0)
    shapes = InputShapes(1000, 0, 3, 0, (PIXELS, PIXELS))
    model = FusionModel(config.model, shapes, {"digit": 10})
    place(model, config, processes)
    engine = build_engine(model, config, processes)
    number = config.global_batch_size
    inputs = {
        "text": torch.randint(1, 1000, (number, TOKENS)),
        "image": torch.randn(number, 3, PIXELS, PIXELS),
    }
    present, labels = torch.ones(number, 2, dtype=torch.bool), torch.arange(number) % 10
    times_s = []
    for step in range(WARM + steps):
        start_s = time.perf_counter()
        logits = engine(inputs, {}, present)["logits"]["digit"]
        engine.backward(torch.nn.functional.cross_entropy(logits, labels))
        engine.step()
        if step >= WARM:
            times_s.append(time.perf_counter() - start_s)
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return {
        "step_s": statistics.median(times_s),
        "peak_bytes": peak_bytes() - before,
        "state_bytes": state_bytes(engine),
        "trainable": sum(size for size, is_trained in sizes if is_trained),
        "parameters": sum(size for size, _ in sizes),
    }


def peak_bytes() -> int:
    """Peak of resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
