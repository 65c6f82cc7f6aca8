"""Functions of the ranks in distributed tests, called by forked_ranks.run_on_ranks."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make import SHAPES, make_config, make_context
from torch.nn.parallel import DistributedDataParallel

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.data.loading.sampler import rank_indices, step_indices
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.deepspeed_engine import (
    build_engine,
    full_fp32_parameters,
    parameters_sha256,
    place,
)
from furnace_hpc.engine.evaluation import evaluate
from furnace_hpc.engine.loop import forward, train_batches, train_step
from furnace_hpc.engine.optimization.schedule import learning_rate
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.gather import gather_of
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

FP32: dict[str, Any] = {"deepspeed__bf16__enabled": False, "deepspeed__data_types": None}
MODALITIES = ("text", "image", "audio")
# Names of engines for zero_against_ddp: a shipped file as it is, or in fp32.
IN_FP32 = ["zero0 fp32", "zero1 fp32", "zero2 fp32", "zero3 fp32"]
SHIPPED = ["zero0", "zero1", "zero1_fp32", "zero2", "zero3", "zero3_offload"]
BF16 = {"zero1", "zero2", "zero3", "zero3_offload"}


def reader_of(data: str, split: str, processes: Processes) -> BatchReader:
    return BatchReader(open_columns(Path(data)), split, MODALITIES, ("digit",), processes.device)


def model_of(config: TrainConfig, data: str) -> FusionModel:
    seed_everything(config.seed)
    return FusionModel(
        config.model, InputShapes.of(open_columns(Path(data)).manifest), {"digit": 10}, config.loss
    )


def zero_steps(
    config: TrainConfig, data: str, processes: Processes, steps: int
) -> tuple[list[float], Any]:
    """Losses (means over ranks) of some calls of train_step, and the engine."""
    engine, reader = (
        build_engine(model_of(config, data), config, processes),
        reader_of(data, "train", processes),
    )
    with train_batches(engine, reader, config, processes) as batches:
        losses = [train_step(engine, batches, config, step)["loss"] for step in range(steps)]
    means = [
        processes.all_reduce_sum(loss.clone()).item() / processes.world_size for loss in losses
    ]
    return means, engine


def ddp_steps(config: TrainConfig, data: str, processes: Processes, steps: int) -> list[float]:
    """The same steps with plain PyTorch: DDP, AdamW, clipping."""
    model = DistributedDataParallel(model_of(config, data), find_unused_parameters=True)
    settings, reader = config.optimizer, reader_of(data, "train", processes)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        indices = step_indices(reader.num_samples, config.seed, step, config.global_batch_size)
        mine = rank_indices(
            indices, processes.rank, processes.world_size, len(indices) // processes.world_size, 0
        )
        batch = reader.read(mine)
        output = model(batch.inputs, batch.lengths, batch.present_BM)
        loss = total_loss(output, batch.labels, batch.present_BM, config.loss, config.tasks)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        losses.append(processes.all_reduce_sum(loss.detach().clone()).item() / processes.world_size)
    return losses


def zero_against_ddp(
    processes: Processes, data: str, engines: list[str], steps: int
) -> dict[str, list[float]]:
    """Losses of plain DDP and of engines. Names: a DeepSpeed file, optionally with " fp32"."""
    terms = {"loss__alpha": 0.5, "loss__beta": 0.3}
    losses = {"ddp": ddp_steps(make_config("zero0", **terms), data, processes, steps)}
    for name in engines:
        file, _, fp32 = name.partition(" ")
        changes: dict[str, Any] = (
            FP32 | {"deepspeed__activation_checkpointing": None} if fp32 else {}
        )
        if name == "zero3 fp32":  # nothing is kept gathered
            changes |= {"deepspeed__zero_optimization__stage3_param_persistence_threshold": 0}
        losses[name], engine = zero_steps(
            make_config(file, **terms, **changes), data, processes, steps
        )
        engine.destroy()
    return losses


def divided_at_start(processes: Processes, data: str) -> list[dict[str, Any]]:
    """A stage 3 engine of a model that `place` has divided, and one that DeepSpeed divides."""
    whole = {"deepspeed__zero_optimization__stage3_param_persistence_threshold": 0}
    answers = []
    for changes in (whole, whole | FP32 | {"deepspeed__activation_checkpointing": None}):
        config, answer = make_config("zero3", **changes), {}
        for how in ("before", "now"):
            model = model_of(config, data)
            num_values = sum(parameter.numel() for parameter in model.parameters())
            if how == "now":
                place(model, config, processes)
                answer["left_of_whole"] = sum(p.numel() for p in model.parameters()) / num_values
                answer["part"] = sum(p.ds_tensor.numel() for p in model.parameters()) / num_values
                assert num_values == sum(p.ds_numel for p in model.parameters())
            engine = build_engine(model, config, processes)
            reader = reader_of(data, "train", processes)
            sha256 = parameters_sha256(full_fp32_parameters(engine))
            with train_batches(engine, reader, config, processes) as batches:
                losses = [float(train_step(engine, batches, config, s)["loss"]) for s in range(3)]
            trained = parameters_sha256(full_fp32_parameters(engine))
            answer[how] = [sha256, losses, trained]
            engine.destroy()
        answers.append(answer)
    return answers


def several(processes: Processes, calls: list[list[Any]]) -> list[Any]:
    """Call several functions, [name, *arguments] each, because starting ranks takes longest."""
    return [globals()[name](processes, *arguments) for name, *arguments in calls]


def bucketed(processes: Processes, data: str) -> dict[str, Any]:
    """Losses and parameters with zero1_fp32, and with gradients in one large buffer."""
    one_buffer = {
        "deepspeed__zero_optimization__contiguous_gradients": True,
        "deepspeed__zero_optimization__reduce_bucket_size": 200_000_000,
    }
    small = {"deepspeed__zero_optimization__reduce_bucket_size": 1000}
    found = {}
    for name, changes in (("shipped", {}), ("small", small), ("one buffer", one_buffer)):
        config = make_config("zero1_fp32", micro_batch_size=2, **changes)
        losses, engine = zero_steps(config, data, processes, 4)
        found[name] = [losses, parameters_sha256(full_fp32_parameters(engine))]
        engine.destroy()
    return found


def accumulated(processes: Processes, data: str, micro_batch_size: int) -> dict[str, Any]:
    """Parameters after some steps with a global batch of 8 and this micro-batch size."""
    # A large eps: Adam turns the rounding error of a gradient that should be 0 (the bias of keys)
    # into whole steps.
    config = make_config("zero1", micro_batch_size=micro_batch_size, optimizer__eps=1e-3, **FP32)
    _, engine = zero_steps(config, data, processes, 4)
    whole, accumulation = full_fp32_parameters(engine), engine.gradient_accumulation_steps()
    engine.destroy()
    return {
        "accumulation": accumulation,
        "parameters": {name: value.flatten().tolist() for name, value in whole.items()},
        "sha256": parameters_sha256(whole),
    }


def evaluated(processes: Processes, data: str, batch_size: int) -> dict[str, Any]:
    """Scores and logits of 59 validation samples at stage 3, where all ranks must take part."""
    config = make_config("zero3", global_batch_size=24, evaluation__batch_size=batch_size, **FP32)
    engine = build_engine(model_of(config, data), config, processes)
    reader = reader_of(data, "val", processes)
    reader.num_samples = 59  # instead of 60, so that three ranks have different numbers of samples
    context = make_context(config, engine, processes=processes, readers={"val": reader})
    done = evaluate(context, "val", with_subsets=True)
    engine.destroy()
    return {"scores": done.scores, "logits": done.logits["digit"].flatten().tolist()}


def means_and_maxima(processes: Processes) -> list[float]:
    total = processes.all_reduce_sum(torch.tensor([float(processes.rank + 1), 10.0]))
    return [
        *total.tolist(),
        processes.all_reduce_max(float(processes.rank))[0],
        processes.broadcast(processes.rank + 7),
    ]


def time_limits(processes: Processes, hang_timeout_s: float) -> list[list[float]]:
    """Seconds after which collectives of each group time out: in the start, and after it."""
    import torch.distributed as dist

    limits = []
    for in_start in (True, False):
        if not in_start:
            processes.end_start(hang_timeout_s)
        groups = list(dist.distributed_c10d._world.pg_map)
        backends = [group._get_backend(processes.device) for group in groups]
        limits.append([backend.options._timeout.total_seconds() for backend in backends])
    return limits


def disjoint_modalities(processes: Processes, designs: list[str]) -> dict[str, list[float]]:
    """Losses at each stage if ranks see different modalities. Skipping one would hang stage 3."""
    from make import DESIGNS, make_inputs

    losses = {}
    for stage, name in itertools.product((1, 2, 3), designs):
        terms = {"loss__info_nce": 0.3, "loss__unimodal": 0.2, "model__modality_dropout": 0.2}
        config = make_config(
            "zero3",
            global_batch_size=24,
            **FP32,
            **terms,
            **{f"model__{key}": value for key, value in DESIGNS[name].items()},
            deepspeed__zero_optimization__stage=stage,
            deepspeed__zero_optimization__stage3_param_persistence_threshold=0,
        )
        seed_everything(0)
        engine = build_engine(
            FusionModel(config.model, SHAPES, {"digit": 10}, config.loss), config, processes
        )
        inputs, lengths, present = make_inputs(B=8)
        present = torch.zeros_like(present)
        present[:, processes.rank % 3] = True
        batch = Batch(np.arange(8), inputs, lengths, present, {"digit": torch.arange(8)})
        losses[f"{name} {stage}"] = []
        for _ in range(3):
            parts = forward(engine, batch, config, gather_of(processes))
            engine.backward(parts["loss"])
            engine.step()
            losses[f"{name} {stage}"].append(parts["loss"].item())
        engine.destroy()
    return losses


def recomputed(processes: Processes, cases: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Losses and attention calls of two steps, without and with recomputation (and dropout).

    Each case is [design, stage].
    """
    from make import DESIGNS, make_inputs

    inputs, lengths, present = make_inputs()
    batch = Batch(np.arange(4), inputs, lengths, present, {"digit": torch.arange(4)})
    answers = []
    for (name, stage), on in itertools.product(cases, (False, True)):
        config = make_config(
            "zero3_checkpointed",
            global_batch_size=4 * processes.world_size,
            **FP32 | ({} if on else {"deepspeed__activation_checkpointing": None}),
            **{
                f"model__{key}": value
                for key, value in (DESIGNS[name] | {"dropout": 0.3, "text_layers": 2}).items()
            },
            deepspeed__zero_optimization__stage=stage,
            deepspeed__zero_optimization__stage3_param_persistence_threshold=0,
            optimizer__eps=1e-3,  # as in `accumulated`
        )
        seed_everything(0)
        engine = build_engine(
            FusionModel(config.model, SHAPES, {"digit": 10}, config.loss), config, processes
        )
        calls: dict[str, int] = {}
        for block in engine.module.modules():
            if (kind := type(block).__name__).endswith("Attention") or kind == "AttentionBlock":
                block.register_forward_pre_hook(
                    lambda module, args, kind=kind, calls=calls: calls.update(
                        {kind: calls.get(kind, 0) + 1}
                    )
                )
        seed_everything(1)
        losses = []
        for _ in range(2):
            parts = forward(engine, batch, config, gather_of(processes))
            engine.backward(parts["loss"])
            engine.step()
            losses.append(parts["loss"].item())
        engine.destroy()
        answers.append({"case": f"{name} {stage}", "losses": losses, "calls": calls})
    return answers


def every_loss(processes: Processes, data: str, name: str, rows: int) -> dict[str, Any]:
    """Loss and gradients of `rows` samples divided among the ranks, with all loss terms."""
    from make import DESIGNS

    terms = {"loss__alpha": 0.5, "loss__beta": 0.3, "loss__info_nce": 0.7, "loss__unimodal": 0.4}
    terms |= {"loss__vicreg": 0.02, "loss__projection_width": 16}
    config = make_config(
        "zero0", **terms, **{f"model__{key}": value for key, value in DESIGNS[name].items()}
    )
    model = model_of(config, data)
    share = rows // processes.world_size
    batch = reader_of(data, "train", processes).read(
        np.arange(rows)[processes.rank * share :][:share]
    )
    row_B = torch.arange(processes.rank * share, (processes.rank + 1) * share)
    # ranks have different numbers of pairs
    present = batch.present_BM & (row_B.unsqueeze(1) % 5 != torch.arange(3))
    batch = replace(batch, present_BM=present)
    parts = forward(model, batch, config, gather_of(processes))
    parts["loss"].backward()
    gradients = {
        key: processes.all_reduce_sum(p.grad) / processes.world_size
        for key, p in model.named_parameters()
    }
    return {
        "parts": {
            key: (processes.all_reduce_sum(v.detach()) / processes.world_size).item()
            for key, v in parts.items()
        },
        "gradients": {key: value.flatten().tolist() for key, value in gradients.items()},
    }


def refusals(processes: Processes, run_dirs: list[str]) -> list[str]:
    """Errors of set_up for each run. The last answer is whether torch's inductor was imported."""
    from furnace_hpc.config.errors import ConfigError
    from furnace_hpc.engine.ranks.stop import StopRequest
    from furnace_hpc.engine.ranks.watchdog import Watchdog
    from furnace_hpc.engine.setup import set_up
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.verdict import RankVerdict

    answers = []
    for run_dir in run_dirs:
        folder = RunFolder(Path(run_dir))
        watchdog = Watchdog.for_run(folder, 1, RankVerdict(folder, 1, processes.rank))
        try:
            set_up(folder, 1, processes, watchdog, StopRequest()).engine.destroy()
            answers.append("accepted")
        except ConfigError as error:
            answers.append(str(error))
    return [*answers, "inductor" if "torch._inductor.compile_fx" in sys.modules else "nothing"]
