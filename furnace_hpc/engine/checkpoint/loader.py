"""Load the newest complete checkpoint of a run on all ranks. `saver.py` writes checkpoints."""

import errno
from typing import Any

import torch

from furnace_hpc.engine.checkpoint import reshard
from furnace_hpc.engine.checkpoint.io_problem import try_io
from furnace_hpc.engine.checkpoint.random_state import seed_everything, set_random_state
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.deepspeed_engine import zero_settings
from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.trust import check_trusted

TAG = "zero"


def load_newest(context: RunContext) -> dict[str, Any] | None:
    """Collective. Load the newest complete checkpoint. Return its state, or None if none was saved.

    If the run selects its best step, the checkpoint of the best step so far must be complete too.

    Raises:
        RuntimeError: checkpoints were saved, but none is complete.
        OSError: the disk error persisted after all retries.
    """
    needs_best = context.config.evaluation.select == "best"
    context.watchdog.heartbeat("looking for a checkpoint")
    step: int | None = None

    def find_step() -> None:
        nonlocal step
        step = checkpoint_files.newest_step(context.folder, needs_best)

    problem = None
    if context.processes.is_rank_zero:
        problem = try_io(find_step)
    step, problem = context.processes.broadcast((step, problem))
    if problem and problem.transient:  # an OSError requeues the run
        raise OSError(errno.EIO, problem.message)
    if problem:
        raise RuntimeError(problem.message)
    if step is None:
        return None
    return _load(context, step)


def load(context: RunContext, step: int) -> dict[str, Any]:
    """Collective. Load one checkpoint, whatever number of processes or ZeRO stage has made it.

    Raises:
        ConfigError: only one of checkpoint and run is at stage 0, or another user could have
            written the checkpoint.
        RuntimeError: it is damaged, it cannot be loaded, or not all hosts can see it.
    """
    path = context.folder.checkpoint(step)
    processes = context.processes
    if not processes.broadcast(processes.is_rank_zero and checkpoint_files.is_complete(path)):
        raise RuntimeError(
            f"checkpoint {path} is damaged: its files differ from its {checkpoint_files.MANIFEST}"
        )
    return _load(context, step)


def _load(context: RunContext, step: int) -> dict[str, Any]:
    """Load a checkpoint whose hashes are right."""
    context.watchdog.heartbeat(f"loading the checkpoint of step {step}")
    engine, processes = context.engine, context.processes
    path = context.folder.checkpoint(step)
    # Its files are pickles, which can run code. Load only files that no other user could have
    # written.
    check_trusted(path, context.folder.path.parent.parent)
    _check_visible(context, step)
    manifest = checkpoint_files.read_manifest(path)
    stage = engine.zero_optimization_stage()
    saved_world_size, saved_stage = manifest["world_size"], manifest.get("zero_stage", stage)
    same_settings = manifest.get("zero", zero_settings(engine)) == zero_settings(engine)
    if same_settings and (saved_world_size, saved_stage) == (processes.world_size, stage):
        loaded, client_state = engine.load_checkpoint(str(path), tag=TAG)
        if loaded is None:
            raise RuntimeError(f"checkpoint {path} could not be loaded")
    else:
        client_state = reshard.load(engine, path / TAG, processes)
        processes.print_once(
            f"checkpoint of step {step} was made by {saved_world_size} processes at ZeRO stage "
            f"{saved_stage}"
        )
    if saved_world_size == processes.world_size:
        # weights_only=False: the file contains random states of numpy and Python. It is trusted,
        # see above.
        random_states = torch.load(path / f"random-{processes.rank}.pt", weights_only=False)
        set_random_state(random_states, processes.device)
    else:  # each rank draws its own dropout masks, and the saved states belong to other ranks
        seed = context.config.training_seed * 1_000_003 + step
        seed_everything(seed * 1_000_003 + 1 + processes.rank)
    state: dict[str, Any] = client_state["furnace"]
    return state


def _check_visible(context: RunContext, step: int) -> None:
    """Raise RuntimeError on all ranks if a rank does not see all files."""
    path = context.folder.checkpoint(step)
    sees = context.processes.gather(checkpoint_files.is_visible(path))
    missing = [rank for rank, sees_all in enumerate(sees) if not sees_all]
    if missing:
        raise RuntimeError(
            f"ranks {missing} do not see all files of checkpoint {path}. Put the runs on a file "
            "system that all nodes mount."
        )


def check_is_newest(folder: RunFolder, attempt: int) -> None:
    """Raise RuntimeError if a newer attempt has begun.

    A node that Slurm thought dead must not overwrite files of its successor.
    """
    newest = newest_attempt(str(folder.path))
    if newest != attempt:
        raise RuntimeError(replaced_message(attempt, newest))


def replaced_message(attempt: int, newest: int) -> str:
    """The error of an attempt that is no longer the newest."""
    return f"attempt {attempt} has been replaced by attempt {newest}: it writes nothing more"
