"""Groups of parameters with the same multiple of the learning rate and the same weight decay."""

from typing import Any

from torch import nn

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.model.fine_tuning import encoders_of, rate_multipliers

MULTIPLIER = "lr_multiplier"  # key of a group; 1 if it is missing


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The groups of the parameters that are trained, in the order of the model.

    A model with one group has no extra keys in it.
    """
    multipliers = rate_multipliers(encoders_of(model), config.model)
    without_decay = set[str]()
    if config.optimizer.weight_decay:  # else all are alike
        without_decay = _without_decay(model, config.optimizer.no_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (multipliers.get(parameter, 1.0), name in without_decay)
            groups.setdefault(key, []).append(parameter)
    if list(groups) == [(1.0, False)]:
        return [{"params": groups[1.0, False]}]
    return [
        {
            "params": parameters,
            MULTIPLIER: multiplier,
            "weight_decay": 0.0 if is_without else config.optimizer.weight_decay,
        }
        for (multiplier, is_without), parameters in groups.items()
    ]


def _without_decay(model: nn.Module, kinds: tuple[str, ...]) -> set[str]:
    """Names of the parameters that the config excludes from weight decay."""
    found = set()
    for prefix, module in model.named_modules():
        is_norm = "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False):
            is_excluded = ("norms" in kinds and is_norm) or ("biases" in kinds and name == "bias")
            if is_excluded:
                found.add(f"{prefix}.{name}" if prefix else name)
    return found


def set_learning_rate(engine: Any, value: float) -> None:
    """Set the rate of all groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value * group.get(MULTIPLIER, 1.0)


def group_names(groups: list[dict[str, Any]]) -> list[str]:
    """Names of groups in the metrics, such as `x0.25` or `x1,no_decay`."""
    if len(groups) == 1:
        return ["all"]
    multipliers = [float(group.get(MULTIPLIER, 1.0)) for group in groups]
    names = []
    for multiplier, group in zip(multipliers, groups, strict=True):
        name = f"x{multiplier:.4g}"
        if multipliers.count(multiplier) > 1 and not group["weight_decay"]:
            name += ",no_decay"
        names.append(name)
    return names
