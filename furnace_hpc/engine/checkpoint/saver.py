"""Save a run's checkpoints while it trains.

1. A step stops while DeepSpeed lists the content and HostCopy copies what the next forward and
   backward pass may change.
2. A thread of each rank copies the rest, for which the next update of the weights waits. Then it
   writes the copy into a temporary folder.
3. When all ranks have written, rank 0 writes the manifest and renames the folder.
4. Each rank reads its files back.
5. Rank 0 deletes older checkpoints.

Ranks exchange the status of their threads at step boundaries, in the all-reduce of the stop flag.
That costs no collective of its own, and threads call none.

DeepSpeed decides what is saved, but none of its file writing is used. Otherwise a full disk on one
rank would leave the other ranks waiting in a collective.
"""

import errno
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.own_code.references import references
from furnace_hpc.engine.checkpoint.background import BackgroundTask
from furnace_hpc.engine.checkpoint.collect import collect_files, stable_storages
from furnace_hpc.engine.checkpoint.host_copy import HostCopy
from furnace_hpc.engine.checkpoint.io_problem import IoProblem, worst
from furnace_hpc.engine.checkpoint.loader import TAG, check_is_newest, replaced_message
from furnace_hpc.engine.checkpoint.random_state import random_state
from furnace_hpc.engine.checkpoint.tensor_files import write_files
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.deepspeed_engine import inner_optimizer, zero_settings
from furnace_hpc.engine.meters import versions
from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.lead_time import LeadTime
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.checkpoint_files import FileDigests

TRIES = 1
BEST_TRIES = 15  # about six minutes: the end of the run needs the best step's own parameters
READ_TRIES = 3
LAST_TRIES = 4  # about seven seconds of the time that a stopped job has left
POLL_S = 0.02
FIRST_TRY = 2  # `busy` of a rank that tries for the first time


@dataclass
class _PendingCheckpoint:
    """A checkpoint in progress."""

    step: int
    temporary: Path
    """The folder that is written."""
    final: Path
    """Its name when it is complete."""
    manifest: dict[str, Any]
    is_best: bool
    task: BackgroundTask
    digests: FileDigests
    """Of the files that this rank has written."""
    is_renamed: bool = False


class CheckpointSaver:
    """A context that saves the checkpoints of one run, one at a time, and deletes older ones.

    All methods but `busy` and `is_due` are collective.
    """

    def __init__(self, context: RunContext, saved: int) -> None:
        self._context, self._processes = context, context.processes
        self._folder, self._config = context.folder, context.config
        self.saved = saved
        """Newest step with a complete checkpoint."""
        self._step, self._due_step, self._retry_steps = saved, self._next_multiple(saved), 1
        self._host_copy: HostCopy | None = None
        self._has_own_code = bool(references(context.config))
        if context.config.checkpoint_in_background:
            self._host_copy = host_copy = HostCopy()
            optimizer = inner_optimizer(context.engine)
            self._hook = optimizer.register_step_pre_hook(lambda *_: host_copy.join())
        self._pending: _PendingCheckpoint | None = None
        self._remaining_stages: Iterator[None] = iter(())
        self._lead_time = LeadTime.of_attempt(context.folder, context.attempt)

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Complete the pending checkpoint if a loss is not finite.

        All ranks raise that error at the same step.
        """
        if kind is FloatingPointError:
            self.wait(self.saved)
        if kind is None and self._host_copy:  # the end of the run needs the memory
            self._hook.remove()
            self._host_copy.close()

    @property
    def busy(self) -> int:
        """0 if this rank's thread is idle, else 1 + the number of tries so far."""
        if self._pending and self._pending.task.is_alive():
            return 1 + self._pending.task.tries
        return 0

    def is_due(self, step: int, busy: int) -> bool:
        """Whether this step needs a periodic checkpoint. `busy` is the largest of all ranks.

        After a failed save the next one is due soon, and later after each further failure. While
        the best step is being retried, no checkpoint is due.
        """
        return step >= self._due_step and busy <= FIRST_TRY

    def begin(self, state: dict[str, Any], is_best: bool = False) -> None:
        """Begin to save the engine, the random states and `state`.

        `state["step"]` names the checkpoint.

        Raises:
            RuntimeError: a newer attempt has begun, so this one must not write.
        """
        tries = TRIES
        if is_best:
            tries = BEST_TRIES
            # The pending checkpoint is no longer the best, so it gets no further tries.
            if self._pending:
                self._pending.is_best = False
                self._pending.task.stop_retrying()
        self._save(state, tries, self._host_copy, is_best)
        if not self._host_copy:
            self.wait(state["step"])

    def save(self, state: dict[str, Any]) -> bool:
        """Save for a run that stops. Return whether the checkpoint is complete.

        The time left is short. So a pending checkpoint gets no further tries, and its files are not
        read back.
        """
        step: int = state["step"]
        pending = self._pending
        if pending:
            pending.task.stop_retrying()
            self.wait(step, lambda: pending.is_renamed)
            self._pending = None
        if self.saved != step:
            self._save(state, LAST_TRIES, None)
            self.wait(step, lambda: self.saved == step)
        return self.saved == step

    def wait(self, step: int, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Wait until no checkpoint is pending or `is_enough()`, which is the same on all ranks."""
        last_busy = 0
        while self._pending and not is_enough():
            busy = int(self._processes.all_reduce_max(self.busy)[0])
            if not busy:
                self.advance(step)
                last_busy = 0
            elif busy > last_busy:  # a new try is progress, but a write that never ends is a hang
                self._context.watchdog.heartbeat(f"saving step {self._pending.step}")
                last_busy = busy
            else:
                time.sleep(POLL_S)

    def advance(self, step: int) -> None:
        """Begin the next stage of the pending checkpoint. Call it when no rank is busy.

        Raises:
            RuntimeError: the checkpoint cannot be saved, for a reason other than a full or failing
                disk.
            OSError: the disk error persisted after all retries, and this is the best step so far.
        """
        self._step = step
        next(self._remaining_stages, None)

    def _save(
        self, state: dict[str, Any], tries: int, host_copy: HostCopy | None, is_best: bool = False
    ) -> None:
        """Collect the content and begin to write it."""
        step: int = state["step"]
        self.wait(step)
        self._context.watchdog.heartbeat(f"saving step {step}")
        nonce = self._agree_on_nonce()
        engine = self._context.engine
        files = collect_files(engine, TAG, {"furnace": state})
        files[f"random-{self._processes.rank}.pt"] = random_state(self._processes.device)
        final = self._folder.checkpoint(step)
        temporary = final.with_name(f"{final.name}.tmp-{nonce}")
        manifest, digests = self._manifest(state), FileDigests()
        if host_copy:
            files = host_copy.copy(files, stable_storages(engine, self._has_own_code))

        def write() -> None:
            if host_copy:
                host_copy.finish()
            digests.update(write_files(files, temporary))

        task = BackgroundTask(write, tries, self._context.watchdog.timeout_s / 2)
        self._due_step = self._next_multiple(step)
        self._pending = _PendingCheckpoint(step, temporary, final, manifest, is_best, task, digests)
        self._remaining_stages = self._complete(self._pending, saved_before=self.saved)

    def _agree_on_nonce(self) -> str:
        """Return the same random suffix on all ranks.

        Raises:
            RuntimeError: on all ranks, if a newer attempt has begun.
        """
        newest, nonce = self._processes.broadcast(
            (newest_attempt(str(self._folder.path)), uuid.uuid4().hex[:8])
        )
        if newest != self._context.attempt:
            raise RuntimeError(replaced_message(self._context.attempt, newest))
        return str(nonce)

    def _manifest(self, state: dict[str, Any]) -> dict[str, Any]:
        engine = self._context.engine
        return {
            "step": state["step"],
            "samples": state["step"] * self._config.global_batch_size,
            "world_size": self._processes.world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "zero": zero_settings(engine),
            "state": state,
            "code_hash": code_hash(),
            "versions": versions(),
        }

    def _complete(self, pending: _PendingCheckpoint, saved_before: int) -> Iterator[None]:
        """Collective. Complete a checkpoint that all ranks have written.

        At each `yield`, threads are at work.
        """
        processes = self._processes
        reports = processes.gather((pending.task.problem, pending.digests, pending.task.took_s))
        problem = worst([problem for problem, _, _ in reports])
        if not problem:
            digests = {name: digest for _, part, _ in reports for name, digest in part.items()}
            write_s = max(took_s for _, _, took_s in reports)
            self._start_on_rank_zero(pending, lambda: self._rename(pending, digests, write_s))
            yield
            problem = processes.broadcast(pending.task.problem)
        if problem:
            self._give_up(pending, problem)
            return
        self.saved, self._retry_steps, pending.is_renamed = pending.step, 1, True

        pending.task = BackgroundTask(lambda: self._read_back(pending), READ_TRIES, 1.0)
        yield
        problem = worst(processes.gather(pending.task.problem))
        if problem:
            self.saved = saved_before
            if processes.is_rank_zero and problem.transient and pending.final.exists():
                checkpoint_files.quarantine(pending.final)
            self._give_up(pending, problem)
            return

        self._start_on_rank_zero(pending, lambda: self._prune(pending))
        yield
        problem = processes.broadcast(pending.task.problem)
        self._pending = None
        if problem and not problem.transient:
            raise RuntimeError(problem.message)

    def _start_on_rank_zero(self, pending: _PendingCheckpoint, work: Callable[[], None]) -> None:
        if self._processes.is_rank_zero:
            written = pending.task
            pending.task = BackgroundTask(work, written.max_tries, written.max_pause_s)

    def _rename(self, pending: _PendingCheckpoint, digests: FileDigests, write_s: float) -> None:
        started_s = time.monotonic()
        # A newer attempt may have begun while this one wrote.
        check_is_newest(self._folder, self._context.attempt)
        if pending.temporary.exists():  # a retry may find it renamed already
            checkpoint_files.complete(pending.temporary, pending.final, pending.manifest, digests)
        took_s = write_s + time.monotonic() - started_s
        checkpoint_files.note_saved(self._folder, pending.step, self._context.attempt, took_s)
        self._lead_time.check(took_s)

    def _read_back(self, pending: _PendingCheckpoint) -> None:
        try:
            checkpoint_files.read_back(pending.final, pending.digests)
        except OSError:
            # A newer attempt may have deleted the checkpoint.
            check_is_newest(self._folder, self._context.attempt)
            raise

    def _prune(self, pending: _PendingCheckpoint) -> None:
        # Otherwise this could delete the checkpoints of a newer attempt.
        check_is_newest(self._folder, self._context.attempt)
        best_step = pending.manifest["state"].get("best_step", 0)
        checkpoint_files.prune(
            self._folder,
            pending.step,
            self._config.keep_checkpoints,
            {best_step},
            self._config.keep_every,
        )

    def _give_up(self, pending: _PendingCheckpoint, problem: IoProblem) -> None:
        """Delete what is written. Raise an error, or plan the next try of a periodic checkpoint."""
        self._pending = None
        if self._processes.is_rank_zero:
            # What cannot be deleted now is deleted after the next save.
            shutil.rmtree(pending.temporary, ignore_errors=True)
        self._processes.print_once(
            f"checkpoint of step {pending.step} could not be saved: {problem.message}"
        )
        if not problem.transient:
            raise RuntimeError(problem.message)
        if pending.is_best:
            raise OSError(
                errno.EIO,
                f"the checkpoint of step {pending.step}, the best so far, could not be saved "
                f"({problem.message})",
            )
        self._due_step = self._step + min(self._retry_steps, self._config.checkpoint_every)
        self._retry_steps *= 2

    def _next_multiple(self, step: int) -> int:
        """The first multiple of `checkpoint_every` after a step."""
        return (step // self._config.checkpoint_every + 1) * self._config.checkpoint_every
