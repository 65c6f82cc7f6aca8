"""Load the newest complete checkpoint of a run on all ranks. `saver.py` writes checkpoints."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.checkpoint import reshard, verify
from furnace_hpc.engine.checkpoint.random_state import seed_everything, set_random_state
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.deepspeed_engine import Engine, zero_settings
from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.checkpoint_files import FileDigests
from furnace_hpc.runs.trust import Untrusted, check_place, check_trusted

TAG = "zero"


def load_newest(context: RunContext) -> dict[str, Any] | None:
    """Collective. Load the newest complete checkpoint. Return its state, or None if none was saved.

    If the run selects its best step, the checkpoint of the best step so far must be complete too.

    Raises:
        RuntimeError: checkpoints were saved, but none is complete.
        OSError: the disk error persisted after all retries.
    """
    context.watchdog.heartbeat("looking for a checkpoint")
    step = verify.newest_step(context, context.config.evaluation.select == "best")
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
    if not verify.is_complete(context, step):
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
    _check_trusted(context, path)
    manifest = processes.broadcast(
        checkpoint_files.read_manifest(path) if processes.is_rank_zero else None
    )
    _check_visible(context, path, manifest["files"])
    stage = engine.zero_optimization_stage()
    saved_world_size, saved_stage = manifest["world_size"], manifest.get("zero_stage", stage)
    same_settings = manifest.get("zero", zero_settings(engine)) == zero_settings(engine)
    if same_settings and (saved_world_size, saved_stage) == (processes.world_size, stage):
        with _own_names(engine):
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


def _check_trusted(context: RunContext, path: Path) -> None:
    """Collective. Raise an error on all ranks if other users could have written the checkpoint.

    Rank 0 checks every file. On each other node one rank checks that all folders on the way to the
    checkpoint, as that node mounts them, belong to this user.

    Raises:
        ConfigError: another user could have written it.
        OSError: it cannot be checked.
    """
    root, found = context.folder.path.parent.parent, None
    try:
        if context.processes.is_rank_zero:
            check_trusted(path, root)
        elif context.processes.local_rank == 0:
            check_place(path, root)
    except Untrusted as error:
        found = (0, str(error))
    except OSError as error:
        found = (error.errno or errno.EIO, f"{path} cannot be checked: {error}")
    for number, message in filter(None, context.processes.gather(found)):
        if number:
            raise OSError(number, message)
        raise ConfigError(message)


def _check_visible(context: RunContext, path: Path, files: FileDigests) -> None:
    """Collective. Raise RuntimeError on all ranks if a rank does not see the files it loads."""
    own = (None, context.processes.rank)
    needed = {name: digest for name, digest in files.items() if verify.rank_of(name) in own}
    sees = context.processes.gather(checkpoint_files.is_visible(path, needed))
    missing = [rank for rank, sees_all in enumerate(sees) if not sees_all]
    if missing:
        raise RuntimeError(
            f"ranks {missing} do not see all files of checkpoint {path}. Put the runs on a file "
            "system that all nodes mount."
        )


@contextmanager
def _own_names(engine: Engine) -> Iterator[None]:
    """Let DeepSpeed look only for this rank's optimizer file.

    It looks for the files of all ranks on every rank, and then opens one.
    """
    find_names = engine._get_all_zero_checkpoint_names

    def names(load_dir: str, tag: str, bf16_mode: bool) -> list[str | None]:
        rank = dist.get_rank(group=engine.optimizer.dp_process_group)
        found: list[str | None] = [None] * engine.loaded_checkpoint_dp_world_size
        found[rank] = engine._get_rank_zero_ckpt_name(
            load_dir, tag, engine.checkpoint_mp_rank, rank, bf16_mode
        )
        return found

    engine._get_all_zero_checkpoint_names = (
        find_names if engine.zero_elastic_checkpoint() else names
    )
    try:
        yield
    finally:
        del engine._get_all_zero_checkpoint_names


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
