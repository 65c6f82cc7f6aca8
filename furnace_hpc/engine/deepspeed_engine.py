"""Build DeepSpeed's engine from a run's config, check it, and read whole parameters from it."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from furnace_hpc.config.train_config import TrainConfig, accumulation_steps
from furnace_hpc.engine.optimization.groups import parameter_groups
from furnace_hpc.engine.optimization.optimizers import TRIED_BY_DEEPSPEED, make_optimizer
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.speed.gradient_check import step_without_waits
from furnace_hpc.model.fine_tuning import checkpoint_encoders, encoders_of

Engine = Any  # deepspeed.DeepSpeedEngine; the library has no types
_PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def zero_settings(engine: Engine) -> dict[str, Any]:
    """The section zero_optimization. DeepSpeed loads only checkpoints with the same settings."""
    return dict(engine.config["zero_optimization"])


def inner_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer of torch.optim, which ZeRO calls for this rank's part of the weights."""
    found: torch.optim.Optimizer = engine.optimizer
    if engine.zero_optimization_stage():
        found = engine.optimizer.optimizer
    return found


def build_engine(model: nn.Module, config: TrainConfig, processes: Processes) -> Engine:
    """Collective. Create the optimizer and DeepSpeed's engine around the model.

    Raises:
        ConfigError: the batch sizes do not divide.
        RuntimeError: the engine's settings differ from the config.
    """
    import deepspeed

    optimizer = make_optimizer(parameter_groups(model, config), config.optimizer)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, processes.world_size, processes.device.type == "cuda"),
        dist_init_required=False,
    )
    if config.deepspeed.activation_checkpointing:
        # initialize() ignores this section. Configure checkpointing and pass it to the model's
        # blocks.
        deepspeed.checkpointing.configure(None, deepspeed_config=engine.config)
        engine.module.checkpoint_activations(deepspeed.checkpointing.checkpoint)
    checkpoint_encoders(encoders_of(model), config.model)
    if config.deepspeed.bf16.check_grad_overflow is False:
        step_without_waits(engine.optimizer)
    _check(engine, config, processes.world_size)
    return engine


def place(model: nn.Module, config: TrainConfig, processes: Processes) -> None:
    """Collective. Move the model to the device. At stage 3 each rank moves only its part.

    `deepspeed.initialize` would first move the whole model, which may be larger than a GPU. It
    divides a model in the same way, so initial values are equal bit for bit. The context
    `with deepspeed.zero.Init()` cannot keep them: it draws bf16 values on the GPU, and a module
    that initializes its parts again finds them divided.
    """
    if config.deepspeed.zero_optimization.stage == 3:
        import deepspeed

        settings = deepspeed_config(config, processes.world_size, processes.device.type == "cuda")
        dtype = next(key for key, name in _PRECISIONS.items() if name == config.deepspeed.precision)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=dtype)
    model.to(processes.device)


def deepspeed_config(config: TrainConfig, world_size: int, on_gpu: bool = False) -> dict[str, Any]:
    """The run's DeepSpeed file, with batch sizes and gradient clipping from the run's config.

    On a GPU, what ZeRO keeps in host memory is page-locked, so that copies do not wait, unless the
    file says otherwise. That changes no number.
    """
    micro_batch_size, steps = accumulation_steps(config, world_size)
    content = config.deepspeed.model_dump(exclude_none=True)
    for name in ("offload_optimizer", "offload_param"):
        if name in content["zero_optimization"]:
            content["zero_optimization"][name].setdefault("pin_memory", on_gpu)
    if config.optimizer.name not in TRIED_BY_DEEPSPEED:
        content["zero_allow_untested_optimizer"] = True
    return {
        **content,
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "steps_per_print": 10**9,
        # It would wait for the GPU twice in each micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }


def _check(engine: Engine, config: TrainConfig, world_size: int) -> None:
    """Compare the engine itself, not the settings it was given, with the config.

    Raises:
        RuntimeError: they differ.
    """
    micro_batch_size, steps = accumulation_steps(config, world_size)
    expected = {
        "ZeRO stage": config.deepspeed.zero_optimization.stage,
        "precision": config.deepspeed.precision,
        "train_batch_size": config.global_batch_size,
        "micro_batch_size": micro_batch_size,
        "gradient_accumulation_steps": steps,
    }
    found = {
        "ZeRO stage": _stage(engine),
        "precision": _PRECISIONS.get(next(engine.module.parameters()).dtype),
        "train_batch_size": engine.train_batch_size(),
        "micro_batch_size": engine.train_micro_batch_size_per_gpu(),
        "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
    }
    if found != expected:
        raise RuntimeError(
            f"DeepSpeed's engine differs from the config: expected {expected}, got {found}"
        )


def _stage(engine: Engine) -> int:
    """The ZeRO stage of the engine's optimizer."""
    match type(engine.optimizer).__name__:
        case "DeepSpeedZeroOptimizer_Stage3":
            return 3
        case "DeepSpeedZeroOptimizer":
            return 2 if engine.optimizer.partition_gradients else 1
        case "BF16_Optimizer":  # stage 1 with fp32 gradient accumulation
            return 1
        case _:
            return 0


def full_fp32_parameters(engine: Engine) -> dict[str, Tensor]:
    """Collective. Whole fp32 (master) parameters by name, on the CPU, on every rank."""
    return {name: value.float().cpu().clone() for name, value in _fp32_parameters(engine)}


def engine_sha256(engine: Engine, processes: Processes) -> str:
    """Collective. `parameters_sha256` of the engine, on rank 0. Empty on the other ranks.

    It holds one parameter at a time in host memory.
    """
    digest = hashlib.sha256()
    for name, value in _fp32_parameters(engine):
        if processes.is_rank_zero:
            _add(digest, name, value.float().cpu())
    return digest.hexdigest() if processes.is_rank_zero else ""


def parameters_sha256(parameters: dict[str, Tensor]) -> str:
    """SHA-256 over fp32 parameters in name order."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        _add(digest, name, parameters[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(name.encode() + b"\0" + value.contiguous().numpy().tobytes())


def _fp32_parameters(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Collective. Names and whole fp32 (master) values, in name order, on any device.

    A frozen parameter has no master value. Its value is that of the forward pass.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in sorted(engine.module.named_parameters()):
        value = parameter.data
        if not parameter.requires_grad:
            with GatheredParameters([parameter]):
                value = parameter.data.clone()
        elif engine.zero_optimization_stage():
            value = safe_get_full_fp32_param(parameter)
        if value is None:
            raise RuntimeError(f"DeepSpeed has no fp32 value of parameter {name}")
        yield name, value.detach()
