"""The exponential moving average (EMA) of the weights, in fp32.

It is an entry of the optimizer's state beside the two moments. So DeepSpeed divides and saves it as
it does with them, and `checkpoint/reshard.py` loads it for any number of processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.checkpoint.shards import AVERAGE
from furnace_hpc.engine.deepspeed_engine import Engine, inner_optimizer
from furnace_hpc.engine.ranks.stop import Stopped


def decay_of(decay: float, step: int) -> float:
    """The decay after a step (from 1). It is smaller at first, to forget the initial weights."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(engine: Engine, config: TrainConfig, step: int) -> None:
    """Add this rank's part of the weights after a step (from 1). The first weights begin it."""
    if config.ema is None:
        return
    rate = 1 - decay_of(config.ema.decay, step)
    for values, state in _parts(engine):
        if AVERAGE in state:
            # Separate operations: one that rounds once would give other bits on other CPUs.
            state[AVERAGE].add_((values - state[AVERAGE]).mul_(rate))
        else:
            state[AVERAGE] = values.detach().clone()
    if engine.zero_optimization_stage() == 0:
        _name_parameters(engine)


@contextmanager
def averaged_weights(engine: Engine, config: TrainConfig) -> Iterator[None]:
    """Collective. A context in which the network has the averaged weights, if there is an average.

    Afterwards it has the same weights as before, bit for bit. After an error they are not restored,
    because other ranks may not take part. The stop of a run is no error: all ranks take part.
    """
    if config.ema is None:
        yield
        return
    _exchange(engine)
    try:
        yield
    except Stopped:
        _exchange(engine)
        raise
    _exchange(engine)


@torch.no_grad()
def _exchange(engine: Engine) -> None:
    """Collective. Exchange weights and average."""
    exchanged = False
    for values, state in _parts(engine):
        if AVERAGE in state:
            before = values.detach().clone()
            values.copy_(state[AVERAGE])
            state[AVERAGE].copy_(before)
            exchanged = True
    if exchanged:
        _update_network(engine)


def _update_network(engine: Engine) -> None:
    """Collective. Give the fp32 weights of the optimizer to the network."""
    optimizer = engine.optimizer
    match engine.zero_optimization_stage():
        case 0:  # they are the same tensors
            return
        case 3:
            optimizer.checkpoint_event_prologue()
            for index in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
            optimizer.checkpoint_event_epilogue()
        case _:
            optimizer.update_lp_params()


def _parts(engine: Engine) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """This rank's fp32 weights, and the optimizer's state of each part that has been trained."""
    optimizer, inner = engine.optimizer, inner_optimizer(engine)
    if engine.zero_optimization_stage() == 3:
        parts = optimizer.fp32_partitioned_groups_flat
    else:
        parts = [part for group in optimizer.param_groups for part in group["params"]]
    for part in parts:
        if state := inner.state.get(part):
            yield part, state


def _name_parameters(engine: Engine) -> None:
    """Add the names of parameters to the groups. The file of stage 0 numbers them only."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    for group in engine.optimizer.param_groups:
        group["names"] = [names[parameter] for parameter in group["params"]]
