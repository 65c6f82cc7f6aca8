"""The content that DeepSpeed would save, collected instead of written.

This uses DeepSpeed's interface for checkpoint writers.
"""

from pathlib import Path
from typing import Any

from furnace_hpc.engine.deepspeed_engine import Engine

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
