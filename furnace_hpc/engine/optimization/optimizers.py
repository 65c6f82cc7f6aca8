"""Make the optimizer that a config names."""

from typing import Any

import torch

from furnace_hpc.config.sections.optimizer import OptimizerConfig

SGD_MOMENTUM = 0.9  # unless the config has another one
# DeepSpeed refuses other optimizers, unless its config allows what its authors have not tried.
# Furnace's tests train, save and resume each of them at every stage.
TRIED_BY_DEEPSPEED = ("adamw", "adam")


def make_optimizer(groups: list[dict[str, Any]], settings: OptimizerConfig) -> Any:
    """An optimizer of torch.optim for groups of parameters."""
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    adam = common | {"betas": settings.betas, "eps": settings.eps}
    momentum = settings.momentum
    match settings.name:
        case "adamw":
            # fused: also on the CPU, where it is seven times as fast
            return torch.optim.AdamW(groups, **adam, fused=True)
        case "adam":
            return torch.optim.Adam(groups, **adam, fused=True)
        case "nadam":
            return torch.optim.NAdam(groups, **adam, decoupled_weight_decay=True)
        case "radam":
            return torch.optim.RAdam(groups, **adam, decoupled_weight_decay=True)
        case "adamax":
            return torch.optim.Adamax(groups, **adam)
        case "rmsprop":
            of_rmsprop: dict[str, Any] = {"alpha": settings.betas[1], "eps": settings.eps}
            return torch.optim.RMSprop(groups, **common, **of_rmsprop, momentum=momentum or 0.0)
        case "sgd":
            momentum = SGD_MOMENTUM if momentum is None else momentum
            of_sgd: dict[str, Any] = {"momentum": momentum, "nesterov": settings.nesterov}
            return torch.optim.SGD(groups, **common, **of_sgd)
        case "adafactor":
            return torch.optim.Adafactor(groups, **common)
