"""Functions of the ranks in test_average.py: the moving average at one ZeRO stage."""

from pathlib import Path
from typing import Any

import torch
from elastic_work import BASE, MORE, engine_of, saver_of, state_of, steps_of
from make import make_config
from torch import Tensor

from furnace_hpc.engine.checkpoint.shards import AVERAGE, whole_average
from furnace_hpc.engine.weights.average import averaged_weights, decay_of
from furnace_hpc.runs.folder import RunFolder

DECAY = 0.6


def follow(processes: Any, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Compare the average with one that is computed from whole weights, and use it."""
    case = case | {"ema": DECAY}
    engine = engine_of(case, processes, seed=0, lr=1e-2)
    expected: dict[str, Tensor] = {}
    for step in range(MORE):
        steps_of(engine, case, processes, step, 1)
        for name, value in state_of(engine)["fp32"].items():
            if name not in expected:
                expected[name] = value.clone()
            rate = 1 - decay_of(DECAY, step + 1)
            expected[name] += (value - expected[name]) * rate
    before = state_of(engine)
    config = make_config(ema={"decay": DECAY})
    with averaged_weights(engine, config):
        inside = state_of(engine)
        seen = _network(engine)
    after = state_of(engine)
    run = RunFolder(folder / case["source"])
    assert saver_of(engine, run, processes).save({"step": MORE})
    read = whole_average(run.checkpoint(MORE) / "zero")
    dtype = next(engine.module.parameters()).dtype
    names = {name for name, _ in engine.module.named_parameters(remove_duplicate=False)}
    assert read.keys() == names  # tied weights have both names
    engine.destroy()
    return {
        "stage": case["stage"],
        "average": _difference(before[AVERAGE], expected),
        "moved": _difference(before["fp32"], expected),
        "inside": _difference(inside["fp32"], before[AVERAGE]),
        "network": _difference(seen, {n: v.to(dtype).float() for n, v in expected.items()}),
        "after": max(_difference(after[kind], before[kind]) for kind in (*BASE, AVERAGE)),
        "read": _difference({name: read[name] for name in expected}, expected),
    }


def _network(engine: Any) -> dict[str, Tensor]:
    """Collective. The weights that the next forward pass uses."""
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=_is_stage_3(engine)):
        return {name: value.detach().float().clone() for name, value in parameters.items()}


def _is_stage_3(engine: Any) -> bool:
    return engine.zero_optimization_stage() == 3


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max((found[name] - wanted[name]).abs().max().item() for name in wanted)


def after_error(processes: Any, folder: Path, case: dict[str, Any]) -> list[float]:
    """Whether weights are restored after a stop, and not after another error."""
    from furnace_hpc.engine.ranks.stop import Stopped

    case = case | {"ema": DECAY}
    engine = engine_of(case, processes, seed=0, lr=1e-2)
    steps_of(engine, case, processes, 0, 2)
    config, changes = make_config(ema={"decay": DECAY}), []
    for error in (Stopped("TERM"), FloatingPointError("no number")):
        before = state_of(engine)["fp32"]
        try:
            with averaged_weights(engine, config):
                raise error
        except (Stopped, FloatingPointError):
            changes.append(_difference(state_of(engine)["fp32"], before))
    engine.destroy()
    torch.manual_seed(0)
    return changes
