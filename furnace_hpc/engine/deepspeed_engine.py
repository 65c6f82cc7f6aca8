"""DeepSpeed's engine: built from a run's config, checked to be what was asked, and asked for whole parameters."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from furnace_hpc.config.train_config import TrainConfig, accumulation_steps
from furnace_hpc.engine.distributed import Processes

Engine = Any  # deepspeed.DeepSpeedEngine; the library has no types


def zero_settings(engine: Engine) -> dict[str, Any]:
    """The engine's section zero_optimization as it was given: DeepSpeed reads only checkpoints of the same one."""
    return dict(engine.config["zero_optimization"])


def build_engine(model: nn.Module, config: TrainConfig, processes: Processes) -> Engine:
    """Collective. Wrap the model by ZeRO.

    Raises:
        ConfigError: the batch sizes do not divide.
        RuntimeError: the engine is not what was asked for.
    """
    import deepspeed

    optimizer_config, offload = (
        config.optimizer,
        config.deepspeed.zero_optimization.offload_optimizer,
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer_config.lr,
        betas=optimizer_config.betas,
        eps=optimizer_config.eps,
        weight_decay=optimizer_config.weight_decay,
        fused=offload is None,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, processes.world_size),
        dist_init_required=False,
    )
    if config.deepspeed.activation_checkpointing:
        # initialize() ignores the section: the model's blocks must be told, and the checkpointing
        # configured.
        deepspeed.checkpointing.configure(None, deepspeed_config=engine.config)
        engine.module.checkpoint_activations(deepspeed.checkpointing.checkpoint)
    _check(engine, config, processes.world_size)
    return engine


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The run's DeepSpeed file with the batch sizes and clipping that the run owns."""
    micro_batch_size, steps = accumulation_steps(config, world_size)
    return {
        **config.deepspeed.model_dump(exclude_none=True),
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "steps_per_print": 10**9,
    }


def _check(engine: Engine, config: TrainConfig, world_size: int) -> None:
    """Compare what the engine has become (not what it was told) with what was asked.

    Raises:
        RuntimeError: they differ.
    """
    micro_batch_size, steps = accumulation_steps(config, world_size)
    wanted = {
        "ZeRO stage": config.deepspeed.zero_optimization.stage,
        "precision": config.deepspeed.precision,
        "train_batch_size": config.global_batch_size,
        "micro_batch_size": micro_batch_size,
        "gradient_accumulation_steps": steps,
    }
    got = {
        "ZeRO stage": _stage(engine),
        "precision": {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(
            next(engine.module.parameters()).dtype
        ),
        "train_batch_size": engine.train_batch_size(),
        "micro_batch_size": engine.train_micro_batch_size_per_gpu(),
        "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
    }
    if got != wanted:
        raise RuntimeError(
            f"DeepSpeed's engine is not what was asked for: wanted {wanted}, got {got}"
        )


def _stage(engine: Engine) -> int:
    """The ZeRO stage that the engine's optimizer really is."""
    match type(engine.optimizer).__name__:
        case "DeepSpeedZeroOptimizer_Stage3":
            return 3
        case "DeepSpeedZeroOptimizer":
            return 2 if engine.optimizer.partition_gradients else 1
        case "BF16_Optimizer":  # stage 1 with fp32 gradient accumulation
            return 1
        case _:
            return 0


def set_learning_rate(engine: Engine, value: float) -> None:
    """Set the rate of all parameter groups: a function of the step, so a resume needs no scheduler state."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def full_fp32_parameters(engine: Engine) -> dict[str, Tensor]:
    """Collective. Whole fp32 (master) parameters by name, on the CPU, on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = {}
    for name, parameter in sorted(engine.module.named_parameters()):
        value = (
            safe_get_full_fp32_param(parameter)
            if engine.zero_optimization_stage()
            else parameter.data
        )
        if value is None:
            raise RuntimeError(f"DeepSpeed has no fp32 value of parameter {name}")
        whole[name] = value.detach().float().cpu().clone()
    return whole


def parameters_sha256(parameters: dict[str, Tensor]) -> str:
    """SHA-256 over fp32 parameters in name order."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        digest.update(name.encode() + b"\0" + parameters[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
