"""The parts of gpu_check.py about MFU, energy, out of memory, auto micro-batch and collectives."""

import argparse
import json
import pickle
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpu_check_parts import check, has_gpu, say
from gpu_check_runs import make_run, train_run

MEMORY_GIB = 8.0  # of the part `auto`: state of AdamW fits, and a batch of 256 images does not


def meters(options: argparse.Namespace) -> None:
    """What a run records: model TFLOP/s, and on a GPU also MFU, memory and energy."""
    from furnace_hpc.config.hardware.gpu_models import gpu_model
    from furnace_hpc.config.hardware.nvml import load
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.metrics import read_metrics

    steps = 8 if options.small else 40
    folder = make_run(options, "meters", {"steps": steps, "log_every": 4})
    code = train_run(folder, options)
    lines = [line for line in read_metrics(RunFolder(folder)) if line["kind"] == "train"]
    result = json.loads((folder / "result.json").read_text()) if code == 0 else {}
    last = lines[-1] if lines else {}
    wanted = {"model_tflop_s", "data_wait_s", "peak_memory_gib"}
    if has_gpu():
        wanted.add("peak_reserved_gib")
        if gpu_model(result.get("device", "")):
            wanted.add("mfu")
        if load():
            wanted.add("energy_j")
    lacking = sorted(wanted - last.keys())
    is_right = not lacking and last["model_tflop_s"] > 0 and 0 <= last.get("mfu", 0) < 1
    figures = {name: result.get(name) for name in ("model_tflop_s", "mfu", "energy_j", "device")}
    check(is_right, "meters of a run", f"lacking {lacking or 'nothing'}: {figures}", **figures)


def auto(options: argparse.Namespace) -> None:
    """The micro-batch that fits into 8 GiB of a real GPU, by real tries. On a CPU: all of it."""
    import gpu_step
    import torch

    from furnace_hpc.engine import micro_batch
    from furnace_hpc.engine.deepspeed_engine import build_engine
    from furnace_hpc.engine.ranks.distributed import RankInfo, init_process_group
    from furnace_hpc.runs.folder import RunFolder

    processes = init_process_group(RankInfo(0, 0, 1, None))
    size = gpu_step.TINY if options.small else gpu_step.BASE
    total = 8 if options.small else 256
    config = gpu_step.config_of("zero1", size | {"global_batch_size": total})
    config = config.model_copy(update={"micro_batch_size": "auto"})
    if has_gpu():
        whole = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY_GIB / whole))

    def make_engine(tried: Any) -> Any:
        return build_engine(gpu_step.make_model(tried).to(processes.device), tried, processes)

    def read(rows: Any) -> Any:
        sized = config.model_copy(update={"global_batch_size": len(rows)})
        batch = gpu_step.make_batch(sized, processes.device)
        return SimpleNamespace(
            inputs=batch["inputs"], lengths={}, present_BM=batch["present"], labels=batch["labels"]
        )

    def column(name: str) -> Any:
        raise KeyError(name)

    reader: Any = SimpleNamespace(
        read=read, column=column, num_samples=total, device=processes.device
    )
    folder = RunFolder(Path(tempfile.mkdtemp(dir=options.runs)))
    fits = micro_batch.probe(make_engine, reader, processes)
    chosen = micro_batch.resolved(config, folder, 1, processes, fits).micro_batch_size
    expected = "the whole batch"
    is_right = chosen == total
    if has_gpu() and not options.small:
        expected, is_right = f"less than {total}", isinstance(chosen, int) and chosen < total
    check(is_right, "micro_batch_size: auto", f"{chosen}, expected {expected}")


def out_of_memory(options: argparse.Namespace) -> None:
    """The report of a rank whose training step runs out of memory: memory, and half the batch."""
    import torch
    from make import make_config

    from furnace_hpc.engine.micro_batch import noted_half, noted_oom
    from furnace_hpc.host import lifecycle
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.verdict import RankVerdict

    device = torch.device("cuda", 0) if has_gpu() else torch.device("cpu")
    folder = RunFolder(Path(tempfile.mkdtemp(dir=options.runs)))
    lifecycle.begin(str(folder.path), {"world_size": 1})
    engine = SimpleNamespace(train_micro_batch_size_per_gpu=lambda: 8)
    with (
        suppress(RuntimeError),
        RankVerdict(folder, 1, 0) as verdict,
        noted_oom(verdict, device),
        noted_half(verdict, make_config(), engine),
    ):
        torch.empty(1 << 46, dtype=torch.uint8, device=device)
    decision = lifecycle.decide(str(folder.path), 1, 1)
    record = lifecycle.read_attempt(str(folder.path), 1)
    is_right = decision == "requeue" and record.get("next_overrides") == {"micro_batch_size": 4}
    check(is_right, "out of memory halves the micro-batch", str(record.get("error"))[-160:])


def collectives(options: argparse.Namespace) -> None:
    """The flight recorder has the last all-reduce: of NCCL on a GPU, of gloo on a CPU."""
    import torch
    import torch.distributed as dist

    from furnace_hpc.engine.ranks.distributed import RankInfo, init_process_group
    from furnace_hpc.engine.ranks.flight_recorder import dump

    folder = Path(tempfile.mkdtemp(dir=options.runs))
    processes = init_process_group(RankInfo(0, 0, 1, None), collectives=folder / "x-")
    dist.all_reduce(torch.ones(7, 3, device=processes.device))
    if not dump(folder / "x-0"):
        say("FAIL", "last collectives", "no file was written")
        return
    entries = pickle.loads((folder / "x-0").read_bytes())["entries"]
    names = [entry["profiling_name"] for entry in entries]
    is_right = any(entry["input_sizes"] == [[7, 3]] for entry in entries)
    check(is_right, "last collectives", f"{len(entries)} entries, the last is {names[-1:]}")
