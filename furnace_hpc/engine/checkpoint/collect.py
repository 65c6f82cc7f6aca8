"""What DeepSpeed would save, collected instead of written: its own interface for checkpoint writers."""

from pathlib import Path
from typing import Any

from furnace_hpc.engine.deepspeed_engine import Engine

_NOWHERE = "/nowhere"  # DeepSpeed wants a folder's name; nothing is written there


def collected(engine: Engine, tag: str, client_state: dict[str, Any]) -> dict[str, Any]:
    """Collective. File -> content of this rank's part of a checkpoint, `<tag>/...` as DeepSpeed names them.

    The contents are the engine's own tensors: they must be written, or copied, before the next step.
    """
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    files: dict[str, Any] = {}

    class Collector(TorchCheckpointEngine):  # type: ignore[misc]  # the library has no types
        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            pass

        def save(self, state_dict: Any, path: str) -> None:
            files[str(Path(path).relative_to(_NOWHERE))] = state_dict

    own = engine.checkpoint_engine
    engine.checkpoint_engine = Collector()
    engine._copy_recovery_script = lambda save_path: None  # two scripts beside every checkpoint
    try:
        engine.save_checkpoint(_NOWHERE, tag=tag, client_state=client_state, save_latest=False)
    finally:
        engine.checkpoint_engine = own
        del engine._copy_recovery_script
    return files
