"""Checkpoints of a run, loaded: the newest sound one, on all ranks and at any shape. `saving.py` makes them."""

import errno
from typing import Any

import torch

from furnace_hpc.engine.checkpoint import reshard
from furnace_hpc.engine.checkpoint.random_state import seed_everything, set_random_state
from furnace_hpc.engine.checkpoint.tensor_files import problem_of
from furnace_hpc.engine.deepspeed_engine import Engine, zero_settings
from furnace_hpc.engine.distributed import Processes
from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.trust import check_trusted

TAG = "zero"


def load_newest(
    engine: Engine, folder: RunFolder, seed: int, processes: Processes, needs_best: bool = False
) -> dict[str, Any] | None:
    """Collective. Load the newest sound checkpoint and return its state; None when there is none.

    `needs_best`: only one whose best step is sound too, since the end of the run wants it.

    Raises:
        RuntimeError: checkpoints were saved, and none is sound.
        OSError: the disk has not got over what it has.
    """
    step: int | None = None

    def look() -> None:
        nonlocal step
        step = checkpoint_files.newest_step(folder, needs_best)

    problem = problem_of(look) if processes.is_rank_zero else None
    step, problem = processes.broadcast((step, problem))
    if problem:  # one that may pass is the disk's, and the run comes back
        raise OSError(errno.EIO, problem[1]) if problem[0] else RuntimeError(problem[1])
    return None if step is None else _load(engine, folder, step, seed, processes)


def load(
    engine: Engine, folder: RunFolder, step: int, seed: int, processes: Processes
) -> dict[str, Any]:
    """Collective. Load one checkpoint; made by another number of processes or at another ZeRO stage, elastically.

    Raises:
        ConfigError: it is of stage 0 and the run is not, or the other way round; or others can have written it.
        RuntimeError: it is damaged, it cannot be loaded, or not all hosts see it.
    """
    path = folder.checkpoint(step)
    if not processes.broadcast(processes.is_rank_zero and checkpoint_files.is_complete(path)):
        raise RuntimeError(
            f"checkpoint {path} is damaged: it is not as its {checkpoint_files.MANIFEST} says"
        )
    return _load(engine, folder, step, seed, processes)


def _load(
    engine: Engine, folder: RunFolder, step: int, seed: int, processes: Processes
) -> dict[str, Any]:
    """Load a checkpoint whose hashes are right. Its files are pickles: what else wrote them could do anything."""
    path = folder.checkpoint(step)
    check_trusted(path, folder.path.parent.parent)
    if blind := [
        rank
        for rank, sees in enumerate(processes.gather(checkpoint_files.is_visible(path)))
        if not sees
    ]:
        raise RuntimeError(
            f"ranks {blind} do not see all of checkpoint {path}: is it on a file system of all nodes?"
        )
    manifest = checkpoint_files.read_manifest(path)
    made_by = manifest["world_size"], manifest.get("zero_stage", engine.zero_optimization_stage())
    same_settings = manifest.get("zero", zero_settings(engine)) == zero_settings(engine)
    if same_settings and made_by == (processes.world_size, engine.zero_optimization_stage()):
        loaded, client_state = engine.load_checkpoint(str(path), tag=TAG)
        if loaded is None:
            raise RuntimeError(f"checkpoint {path} could not be loaded")
    else:
        client_state = reshard.load(engine, path / TAG, processes)
        processes.say(
            f"checkpoint of step {step} was made by {made_by[0]} processes at ZeRO stage {made_by[1]}"
        )
    if made_by[0] == processes.world_size:
        # weights_only=False: it holds numpy's and Python's random states, and is trusted, see
        # above.
        set_random_state(
            torch.load(path / f"random-{processes.rank}.pt", weights_only=False), processes.device
        )
    else:  # masks of dropout are drawn per rank, and these ranks have none to go on with
        seed_everything((seed * 1_000_003 + step) * 1_000_003 + 1 + processes.rank)
    state: dict[str, Any] = client_state["furnace"]
    return state


def check_is_newest(folder: RunFolder, attempt: int) -> None:
    """Raise RuntimeError when a newer attempt has been begun: a node thought dead must not write over its successor."""
    if (newest := newest_attempt(str(folder.path))) != attempt:
        raise RuntimeError(replaced(attempt, newest))


def replaced(attempt: int, newest: int) -> str:
    """What an attempt says that is no longer the newest."""
    return f"attempt {attempt} has been replaced by attempt {newest}: it writes nothing more"
