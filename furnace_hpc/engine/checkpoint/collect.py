"""The content that DeepSpeed would save, collected instead of written.

This uses DeepSpeed's interface for checkpoint writers. `stable_storages` names the part of it that
only an update of the weights changes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from furnace_hpc.engine.deepspeed_engine import Engine, inner_optimizer

_FOLDER = "/nowhere"  # DeepSpeed needs a folder name; nothing is written there


def collect_files(engine: Engine, tag: str, client_state: dict[str, Any]) -> dict[str, Any]:
    """Collective. Return file name -> content of this rank's part of a checkpoint.

    DeepSpeed chooses the names, `<tag>/...`. The contents are the engine's own tensors. Write or
    copy them before the next step.
    """
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    files: dict[str, Any] = {}

    class Collector(TorchCheckpointEngine):  # type: ignore[misc]  # the library has no types
        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            pass

        def save(self, state_dict: Any, path: str) -> None:
            files[str(Path(path).relative_to(_FOLDER))] = state_dict

    original = engine.checkpoint_engine
    engine.checkpoint_engine = Collector()
    # DeepSpeed would copy two scripts beside every checkpoint.
    engine._copy_recovery_script = lambda save_path: None
    try:
        engine.save_checkpoint(_FOLDER, tag=tag, client_state=client_state, save_latest=False)
    finally:
        engine.checkpoint_engine = original
        del engine._copy_recovery_script
    return files


def stable_storages(engine: Engine, has_own_code: bool) -> set[int]:
    """Addresses of storages in host memory that only the optimizer's step changes.

    They belong to fp32 weights, moments, the moving average and the network's parameters. A forward
    pass may change buffers. A grid's own code may change parameters in it. Stage 3 gathers and
    frees parameters in each pass. The set is empty with a GPU, because copying while the GPU
    computes was not tested.
    """
    if torch.cuda.is_available():
        return set()
    stage, inner = engine.zero_optimization_stage(), inner_optimizer(engine)
    found = [value for state in inner.state.values() for value in state.values()]
    if stage == 3:
        found += engine.optimizer.fp32_partitioned_groups_flat
    elif stage:
        found += [part for group in inner.param_groups for part in group["params"]]
    if stage < 3 and not has_own_code:
        found += engine.module.parameters()
    stable = {_address(value) for value in found if isinstance(value, Tensor)}
    return stable - {_address(buffer) for buffer in engine.module.buffers()}


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
