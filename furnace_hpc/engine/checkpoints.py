"""Checkpoints of a run: written by all ranks into a temporary folder, described by a manifest, then renamed.

DeepSpeed decides what is saved, and none of its file work is used: its checkpoint engine here only collects, so that a
full disk on one rank is known to all of them instead of leaving the others in a collective.
"""

import io
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from furnace_hpc.engine import elastic
from furnace_hpc.engine.collect import collected
from furnace_hpc.engine.processes import Processes
from furnace_hpc.engine.random_state import random_state, seed_everything, set_random_state
from furnace_hpc.engine.zero import Engine
from furnace_hpc.runs import checkpoint_files
from furnace_hpc.runs.checkpoint_files import Described
from furnace_hpc.runs.folder import PASSING, RunFolder
from furnace_hpc.runs.host import newest_attempt

TAG = "zero"


def save(
    engine: Engine, folder: RunFolder, attempt: int, step: int, state: dict[str, Any], processes: Processes
) -> bool:
    """Collective. Save the engine, each rank's random state and `state` as `checkpoints/step-<step>`.

    Returns:
        Whether it is saved; not, where the file system may get over what it has: nothing is left of it then.

    Raises:
        RuntimeError: a newer attempt has been begun: this one must not write over it. Or it cannot be written.
    """
    final = folder.checkpoint(step)
    newest, nonce = processes.broadcast((newest_attempt(str(folder.path)), uuid.uuid4().hex[:8]))
    if newest != attempt:  # all ranks know it, and none waits for another
        raise RuntimeError(_replaced(attempt, newest))
    aside = final.with_name(f"{final.name}.tmp-{nonce}")
    files = collected(engine, TAG, {"furnace": state})
    files[f"random-{processes.rank}.pt"] = random_state(processes.device)

    described: Described = {}
    problem = _problem_of(lambda: described.update(_write(files, aside)))
    said = processes.gather((problem, described))
    if not (problem := _worst([problem for problem, _ in said])) and processes.is_rank_zero:
        whole = {name: facts for _, part in said for name, facts in part.items()}
        stage = engine.zero_optimization_stage()
        facts = {"step": step, "world_size": processes.world_size, "zero_stage": stage, "state": state}

        def finish() -> None:
            check_is_newest(folder, attempt)  # again: it may have been replaced while it wrote
            checkpoint_files.complete(aside, final, facts, whole)
            checkpoint_files.note_saved(folder, step, attempt)

        problem = _problem_of(finish)
    problem = processes.broadcast(problem)
    if problem:
        if processes.is_rank_zero:
            shutil.rmtree(aside, ignore_errors=True)  # what stays is deleted after the next save
        processes.say(f"checkpoint of step {step} could not be saved: {problem[1]}")
    if problem and not problem[0]:
        raise RuntimeError(problem[1])
    return not problem


def load_newest(engine: Engine, folder: RunFolder, seed: int, processes: Processes) -> dict[str, Any] | None:
    """Collective. Load the newest sound checkpoint and return its state; None when there is none.

    Raises:
        RuntimeError: checkpoints were saved, and none is sound.
    """
    step: int | None = None

    def look() -> None:
        nonlocal step
        step = checkpoint_files.newest_step(folder)

    problem = _problem_of(look) if processes.is_rank_zero else None
    step, problem = processes.broadcast((step, problem))
    if problem:
        raise RuntimeError(problem[1])
    return None if step is None else load(engine, folder, step, seed, processes)


def load(engine: Engine, folder: RunFolder, step: int, seed: int, processes: Processes) -> dict[str, Any]:
    """Collective. Load one checkpoint; made by another number of processes or at another ZeRO stage, elastically.

    Raises:
        ConfigError: it is of stage 0 and the run is not, or the other way round.
        RuntimeError: it cannot be loaded, or not all hosts see it.
    """
    path = folder.checkpoint(step)
    if blind := [rank for rank, sees in enumerate(processes.gather(checkpoint_files.is_visible(path))) if not sees]:
        raise RuntimeError(f"ranks {blind} do not see all of checkpoint {path}: is it on a file system of all nodes?")
    manifest = checkpoint_files.read_manifest(path)
    made_by = manifest["world_size"], manifest.get("zero_stage", engine.zero_optimization_stage())
    if made_by == (processes.world_size, engine.zero_optimization_stage()):
        loaded, client_state = engine.load_checkpoint(str(path), tag=TAG)
        if loaded is None:
            raise RuntimeError(f"checkpoint {path} could not be loaded")
    else:
        client_state = elastic.load(engine, path / TAG, processes)
        processes.say(f"checkpoint of step {step} was made by {made_by[0]} processes at ZeRO stage {made_by[1]}")
    if made_by[0] == processes.world_size:
        # weights_only=False: it holds numpy's and Python's random states, and lies in the user's own run folder.
        set_random_state(torch.load(path / f"random-{processes.rank}.pt", weights_only=False), processes.device)
    else:  # masks of dropout are drawn per rank, and these ranks have none to go on with
        seed_everything((seed * 1_000_003 + step) * 1_000_003 + 1 + processes.rank)
    state: dict[str, Any] = client_state["furnace"]
    return state


def check_is_newest(folder: RunFolder, attempt: int) -> None:
    """Raise RuntimeError when a newer attempt has been begun: a node thought dead must not write over its successor."""
    if (newest := newest_attempt(str(folder.path))) != attempt:
        raise RuntimeError(_replaced(attempt, newest))


def _replaced(attempt: int, newest: int) -> str:
    return f"attempt {attempt} has been replaced by attempt {newest}: it writes nothing more"


def _write(files: dict[str, Any], aside: Path) -> Described:
    """Write this rank's files durably; their sizes and hashes, read back."""
    for name, content in files.items():
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _save_durably(path, content)
    return {name: checkpoint_files.describe(aside / name) for name in files}


class _Told(io.FileIO):
    """A file that remembers what its file system said."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            raise


def _save_durably(path: Path, content: Any) -> None:
    """As torch.save, whose own errors hide the file system's: a full disk is a RuntimeError `unexpected pos`.

    Raises:
        OSError: it cannot be written.
    """
    raw = _Told(path, "w")
    try:
        with io.BufferedWriter(raw) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except Exception:
        if raw.problem:
            raise raw.problem from None
        raise


Problem = tuple[bool, str]  # whether it may pass, and what it is


def _problem_of(work: Callable[[], None]) -> Problem | None:
    """What went wrong; None when nothing did. An exception on one rank would leave the others in a collective."""
    try:
        work()
    except OSError as error:
        return error.errno in PASSING, f"{type(error).__name__}: {error}"
    except RuntimeError as error:
        return False, str(error)
    return None


def _worst(problems: list[Problem | None]) -> Problem | None:
    """One that does not pass, before one that may."""
    return min((problem for problem in problems if problem), default=None)
