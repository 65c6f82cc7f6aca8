"""Functions of the ranks in tests of the step: launches, host reads, flags and gradients."""

import math
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from make import SHAPES, make_config, make_context, make_inputs
from rank_work import model_of, reader_of

from furnace_hpc.data.loading.batches import Batch
from furnace_hpc.engine import loop
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.deepspeed_engine import (
    build_engine,
    full_fp32_parameters,
    parameters_sha256,
)
from furnace_hpc.engine.loop import Progress, TrainingLoop, forward, train_batches
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.stop import StopRequest
from furnace_hpc.engine.speed.gradient_check import GradientCheck
from furnace_hpc.model.network import FusionModel


def gradient_checks(processes: Processes, stage: str) -> dict[str, Any]:
    """Launches of one step, and the error of a gradient that is not finite.

    With check_grad_overflow as DeepSpeed has it by default, and as the file has it.
    """
    inputs, lengths, present = make_inputs()
    batch = Batch(np.arange(4), inputs, lengths, present, {"digit": torch.arange(4)})
    answers: dict[str, Any] = {}
    for name, key in (("default", True), ("file", False)):
        config = make_config(stage, global_batch_size=4, deepspeed__bf16__check_grad_overflow=key)
        seed_everything(0)
        network = FusionModel(config.model, SHAPES, {"digit": 10}, config.loss)
        engine = build_engine(network, config, processes)
        engine.backward(forward(engine, batch, config)["loss"])
        calls = launches(engine.step)
        check = GradientCheck()
        check.add(engine, 1)
        check.check()
        sha256 = parameters_sha256(full_fp32_parameters(engine))
        error, batches = "", SimpleNamespace(of_step=lambda step: [batch])
        with patch.object(loop, "forward", lambda *of: {"loss": forward(*of)["loss"] * math.nan}):
            try:
                loop.train_step(engine, batches, config, 1)
                check.add(engine, 2)
                check.check()
            except FloatingPointError as problem:
                error = str(problem)
        engine.destroy()
        answers[name] = {"calls": calls, "sha256": sha256, "error": error}
    answers["tensors"] = len(list(network.parameters()))
    return answers


# Calls that give a tensor another form, or new memory. They start no kernel on a GPU.
NO_KERNEL = re.compile(
    "alias|as_strided|detach|empty|empty_like|empty_strided|expand|lift_fresh|narrow|new_empty|"
    "reshape|resize_|result_type|select|set_|slice|t|to|transpose|unsqueeze|view|view_as|"
    "_has_compatible_shallow_copy_type|_reshape_alias|_unsafe_view"
)


def launches(function: Callable[[], Any]) -> int:
    """Calls of torch that would start a kernel on a GPU, by its profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        function()
    return sum(
        _is_kernel(event) and not any(_is_kernel(part) for part in event.cpu_children)
        for event in seen.events()
    )


def _is_kernel(event: Any) -> bool:
    library, _, name = event.name.partition("::")
    return library == "aten" and not NO_KERNEL.fullmatch(name)


def launches_of_stages(processes: Processes) -> dict[str, tuple[int, int]]:
    """Stage -> launches of the second step of BERT and ViT with 12 layers, and their tensors."""
    import gpu_step

    counts = {}
    size = {**gpu_step.TINY, "model__text_layers": 12, "model__image_layers": 12}
    for stage in ("zero1", "zero2"):
        config = gpu_step.config_of(stage, size)
        engine = build_engine(gpu_step.make_model(config), config, processes)
        batch = gpu_step.make_batch(config, processes.device)
        ready = Batch(np.arange(4), batch["inputs"], {}, batch["present"], batch["labels"])
        for _ in range(2):
            engine.backward(forward(engine, ready, config)["loss"])
            count = launches(engine.step)
        counts[stage] = count, len(list(engine.module.parameters()))
        engine.destroy()
    return counts


def sent_flags(processes: Processes) -> list[Any]:
    """What each boundary of five reads, if rank 1 gets a signal at the third and is busy at first.

    Boundaries wait for no other rank: rank 0 sends three times before rank 1 sends once.
    """
    stop = StopRequest()
    answers: list[Any] = []
    for boundary in range(5):
        if processes.rank == 1 and boundary == 2:
            stop._set(signal.SIGTERM, None)
        answers.append(stop.receive(processes, busy=0))
        stop.send(processes, busy=int(processes.rank == 1 and boundary < 2))
    stop.settle()
    answers.append(type(processes.control._get_backend(torch.device("cpu"))).__name__)
    started_s = time.monotonic()
    if processes.rank == 1:
        time.sleep(1.0)
    stop.send(processes)
    answers.append(time.monotonic() - started_s)
    stop.settle()
    return answers


class IdleSaver:
    """A saver that has nothing to save."""

    busy, saved = 0, 0

    def is_due(self, step: int, busy: int) -> bool:
        return False

    def advance(self, step: int) -> None:
        pass


def host_reads(
    processes: Processes, stages: list[str], folder: str, data: str
) -> dict[str, list[str]]:
    """Stage -> where the host reads values back in steps and boundaries between two records."""
    from host_reads import HostReads

    model = {"image_encoder": "vit", "audio_encoder": "transformer", "modality_dropout": 0.2}
    losses = {"alpha": 0.5, "beta": 0.3, "info_nce": 1.0, "vicreg": 0.1, "unimodal": 0.3}
    keys = {f"model__{name}": value for name, value in model.items()}
    keys |= {f"loss__{name}": value for name, value in losses.items()}
    keys |= {"model__image_layers": 1, "model__audio_layers": 1, "micro_batch_size": 2}
    places = {}
    for stage in stages:
        config = make_config(stage, log_every=100, evaluation__every=100, **keys)
        engine = build_engine(model_of(config, data), config, processes)
        reader = reader_of(data, "train", processes)
        path = Path(folder) / stage
        path.mkdir(exist_ok=True)
        context = make_context(config, engine, path, processes, {"train": reader})
        verdict = SimpleNamespace(at=lambda step: None)
        # the check of inputs is for the CPU alone
        skipped = patch.object(FusionModel, "_check_present", lambda self, present_BM: None)
        with skipped, train_batches(engine, reader, config, processes) as batches:
            training = TrainingLoop(context, batches, verdict, Progress())
            for _ in range(2):
                training._step_boundary(IdleSaver())
                training._train_one_step()
            with HostReads() as reads:
                for _ in range(2):
                    training._step_boundary(IdleSaver())
                    training._train_one_step()
        context.stop.settle()
        engine.destroy()
        places[stage] = reads.places
    return places
