"""Checkpoints: written by all ranks into a temporary folder, described by a manifest, then renamed."""

import json
import os
import random
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from furnace_hpc.engine.processes import Processes
from furnace_hpc.engine.zero import Engine
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.host import newest_attempt

TAG = "zero"
MANIFEST = "manifest.json"


def save(
    engine: Engine, folder: RunFolder, attempt: int, step: int, state: dict[str, Any], processes: Processes
) -> None:
    """Collective. Save the engine, each rank's random state and `state` as `checkpoints/step-<step>`.

    Raises:
        RuntimeError: a newer attempt has been begun: this one must not write over it.
    """
    final = folder.checkpoint(step)
    newest, nonce = processes.broadcast((newest_attempt(str(folder.path)), uuid.uuid4().hex[:8]))
    if newest != attempt:  # all ranks know it, and none waits for another
        raise RuntimeError(_replaced(attempt, newest))
    aside = final.with_name(f"{final.name}.tmp-{nonce}")
    if processes.is_rank_zero:
        aside.mkdir(parents=True)
    processes.barrier()
    engine.save_checkpoint(str(aside), tag=TAG, client_state={"furnace": state}, save_latest=False)
    torch.save(_random_state(processes), aside / f"random-{processes.rank}.pt")
    processes.barrier()
    if processes.is_rank_zero:
        try:
            check_is_newest(folder, attempt)  # again: it may have been replaced while it wrote
            _complete(aside, final, {"step": step, "world_size": processes.world_size, "state": state})
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    processes.barrier()


def load_newest(engine: Engine, folder: RunFolder, processes: Processes) -> dict[str, Any] | None:
    """Collective. Load the newest complete checkpoint and return its state; None when there is none."""
    step = processes.broadcast(newest_step(folder) if processes.is_rank_zero else None)
    return None if step is None else load(engine, folder, step, processes)


def load(engine: Engine, folder: RunFolder, step: int, processes: Processes) -> dict[str, Any]:
    """Collective. Load one checkpoint.

    Raises:
        RuntimeError: it was made by another number of processes, or cannot be loaded.
    """
    path = folder.checkpoint(step)
    made_by = json.loads((path / MANIFEST).read_text())["world_size"]
    if made_by != processes.world_size:
        raise RuntimeError(
            f"checkpoint {path} was made by {made_by} processes, this attempt has {processes.world_size}: "
            f"submit with the resources it was made with"
        )
    loaded, client_state = engine.load_checkpoint(str(path), tag=TAG)
    if loaded is None:
        raise RuntimeError(f"checkpoint {path} could not be loaded")
    # weights_only=False: the file holds numpy and Python random states, and lies in the user's own run folder.
    _set_random_state(torch.load(path / f"random-{processes.rank}.pt", weights_only=False), processes)
    state: dict[str, Any] = client_state["furnace"]
    return state


def newest_step(folder: RunFolder) -> int | None:
    """Step of the newest checkpoint whose files are as its manifest says; None when none was ever saved.

    Raises:
        RuntimeError: there are checkpoints, and all are damaged: starting again at step 0 must be somebody's decision.
    """
    steps = [int(path.name[5:]) for path in folder.checkpoints.glob("step-*") if path.name[5:].isdigit()]
    for step in sorted(steps, reverse=True):
        if is_complete(folder.checkpoint(step)):
            return step
        print(f"checkpoint {folder.checkpoint(step)} is damaged and left out", flush=True)
    if steps:
        raise RuntimeError(f"all checkpoints in {folder.checkpoints} are damaged: remove the folder to begin at step 0")
    return None


def is_complete(path: Path) -> bool:
    """Whether every file has the size and the hash of the manifest."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        return all(_describe(path / name) == described for name, described in files.items())
    except (OSError, ValueError, KeyError):
        return False


def check_is_newest(folder: RunFolder, attempt: int) -> None:
    """Raise RuntimeError when a newer attempt has been begun: a node thought dead must not write over its successor."""
    if (newest := newest_attempt(str(folder.path))) != attempt:
        raise RuntimeError(_replaced(attempt, newest))


def _replaced(attempt: int, newest: int) -> str:
    return f"attempt {attempt} has been replaced by attempt {newest}: it writes nothing more"


def prune(folder: RunFolder, saved: int, keep: int, also: set[int]) -> None:
    """Keep the newest `keep` checkpoints up to the one just saved, and the steps in `also`; delete the others.

    Later steps than the one just saved are damaged ones, which were left out when this attempt began.
    """
    steps = sorted(int(path.name[5:]) for path in folder.checkpoints.glob("step-*") if path.name[5:].isdigit())
    kept = {step for step in steps if step <= saved}
    kept = set(sorted(kept)[-keep:]) | also
    for step in steps:
        if step not in kept:
            shutil.rmtree(folder.checkpoint(step))
    for left in folder.checkpoints.glob("step-*.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)


def _complete(aside: Path, final: Path, facts: dict[str, Any]) -> None:
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    described = {str(path.relative_to(aside)): _describe(path) for path in files}
    (aside / MANIFEST).write_text(json.dumps(facts | {"files": described}, indent=2))
    for path in (aside / MANIFEST, aside / TAG, aside):
        _sync(path)
    if final.exists():  # an earlier attempt saved this very step, and this one came there again
        shutil.rmtree(final)
    aside.rename(final)
    _sync(final.parent)


def _describe(path: Path) -> list[Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_state(processes: Processes) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state(processes.device) if processes.device.type == "cuda" else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any], processes: Processes) -> None:
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if state["cuda"] is not None and processes.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], processes.device)
