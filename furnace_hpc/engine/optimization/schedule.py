"""The learning rate of a step.

It depends on the step alone, so checkpoints need no scheduler.
"""

import math

from furnace_hpc.config.train_config import TrainConfig

POWER = 2.0  # of polynomial decay, unless the config has another one


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step `step` (from 0): linear warm-up, perhaps constant, then the decay."""
    peak, schedule = config.optimizer.lr, config.schedule
    warmup = round(schedule.warmup_fraction * config.steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    start = warmup + round(schedule.stable * config.steps)
    if schedule.decay == "constant" or step < start:
        return peak
    share = (step - start) / max(1, config.steps - start)
    match schedule.decay:
        case "cosine":
            angle = math.pi * (step - start) / max(1, config.steps - start)
            left = 0.5 * (1 + math.cos(angle))
        case "polynomial":
            left = (1 - share) ** (schedule.power or POWER)
        case _:
            left = 1 - share
    final = schedule.final_fraction or 0.0
    return peak * (final + (1 - final) * left)
