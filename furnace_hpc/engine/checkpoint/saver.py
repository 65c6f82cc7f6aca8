"""Saving a run's checkpoints while it trains.

A step stops for what DeepSpeed collects and for its copy into host memory. A thread of each rank writes the copy into a
temporary folder; when all have, rank 0's writes the manifest and renames the folder; each rank's reads back what it
wrote; and only then rank 0's deletes older ones. What the threads have come to is agreed upon at the step boundaries,
together with the stop flag: no collective is made for it, and none by a thread.

DeepSpeed decides what is saved, and none of its file work is used, so that a full disk on one rank is known to all of
them instead of leaving the others in a collective.
"""

import errno
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.checkpoint.background import BackgroundTask
from furnace_hpc.engine.checkpoint.collect import collected
from furnace_hpc.engine.checkpoint.host_copy import HostCopy
from furnace_hpc.engine.checkpoint.loader import TAG, check_is_newest, replaced
from furnace_hpc.engine.checkpoint.random_state import random_state
from furnace_hpc.engine.checkpoint.tensor_files import Problem, worst, write_files
from furnace_hpc.engine.deepspeed_engine import Engine, zero_settings
from furnace_hpc.engine.distributed import Processes
from furnace_hpc.engine.meters import versions
from furnace_hpc.engine.watchdog import Watchdog
from furnace_hpc.host.lifecycle import newest_attempt
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.lead_time import LeadTime
from furnace_hpc.runs.records import checkpoint_files
from furnace_hpc.runs.records.checkpoint_files import FileDigests

TRIES = 1
# some six minutes: the selected step is needed at the end, and only its own parameters will do
BEST_TRIES = 15
READ_TRIES = 3
LAST_TRIES = 4  # some seven seconds of the time that a stopped job is given
POLL_S = 0.02
FIRST_TRY = 2  # of `busy`


@dataclass
class _Pending:
    """A checkpoint that is on its way to the disk."""

    step: int
    aside: Path
    facts: dict[str, Any]
    is_best: bool
    work: BackgroundTask
    described: FileDigests
    """What this rank wrote."""
    is_named: bool = False


class CheckpointSaver:
    """A context: saves one run's checkpoints, one at a time, and keeps those that it is to keep.

    All methods but `busy` and `is_due` are collective.
    """

    def __init__(
        self,
        engine: Engine,
        folder: RunFolder,
        attempt: int,
        config: TrainConfig,
        processes: Processes,
        watchdog: Watchdog,
        saved: int,
    ) -> None:
        self._engine, self._folder, self._attempt = engine, folder, attempt
        self._config, self._processes, self._watchdog = config, processes, watchdog
        self.saved = saved
        """The newest step that is safe on the disk."""
        self._step, self._due, self._pause = saved, self._next(saved), 1
        self._host_copy = HostCopy() if config.checkpoint_in_background else None
        self._pending: _Pending | None = None
        self._stages: Iterator[None] = iter(())
        self._lead_time = LeadTime.of_attempt(folder, attempt)

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A loss that is not finite is known to all ranks at the same step: what is on its way is still good."""
        if kind is FloatingPointError:
            self.wait(self.saved)

    @property
    def busy(self) -> int:
        """0: this rank writes nothing now. Else a number that grows with each try."""
        work = self._pending.work if self._pending else None
        return 1 + work.tries if work and work.is_alive() else 0

    def is_due(self, step: int, busy: int) -> bool:
        """Whether this step is to be saved; `busy` as agreed upon by all ranks.

        After a save that failed soon again, then ever more seldom; not while the best step is tried again and again.
        """
        return step >= self._due and busy <= FIRST_TRY

    def begin(self, state: dict[str, Any], is_best: bool = False) -> None:
        """Begin to save the engine as it is, each rank's random state and `state`, whose `step` names it.

        Raises:
            RuntimeError: a newer attempt has been begun: this one must not write over it.
        """
        self._save(state, BEST_TRIES if is_best else TRIES, self._host_copy, is_best)
        if not self._host_copy:
            self.wait(state["step"])

    def save(self, state: dict[str, Any]) -> bool:
        """Save, and wait until it is safe on the disk; whether it is."""
        step: int = state["step"]
        # a stopped job's time is short: no more tries, no reading back
        if (pending := self._pending) is not None:
            pending.work.no_more_tries()
            self.wait(step, lambda: pending.is_named)
            self._pending = None
        if self.saved != step:
            self._save(state, LAST_TRIES, None)
            self.wait(step, lambda: self.saved == step)
        return self.saved == step

    def wait(self, step: int, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Wait for what is on its way."""
        seen = 0
        while self._pending and not is_enough():
            busy = int(self._processes.all_reduce_max(self.busy)[0])
            if not busy:
                self.advance(step)
                seen = 0
            elif busy > seen:  # tries and pauses are no hang; one write that does not end is
                self._watchdog.heartbeat(f"saving step {self._pending.step}")
                seen = busy
            else:
                time.sleep(POLL_S)

    def advance(self, step: int) -> None:
        """Take the next step of what is on its way. To be called when all ranks know that none is busy.

        Raises:
            RuntimeError: it cannot be saved; not for a full or failing disk, which may get over it.
            OSError: the disk has not got over it, and it is the best step so far.
        """
        self._step = step
        next(self._stages, None)

    def _rest_of(self, pending: _Pending, before: int) -> Iterator[None]:
        """Collective. What follows when all have written; at each `yield` threads are at work."""
        processes, final = self._processes, self._folder.checkpoint(pending.step)
        said = processes.gather((pending.work.problem, pending.described, pending.work.took_s))
        problem = worst([problem for problem, _, _ in said])
        if not problem:
            files = {name: facts for _, part, _ in said for name, facts in part.items()}
            wrote_s = max(took_s for _, _, took_s in said)
            self._on_rank_zero(pending, lambda: self._name(pending, final, files, wrote_s))
            yield
            problem = processes.broadcast(pending.work.problem)
        if problem:
            self._failed(pending, problem)
            return
        self.saved, self._pause, pending.is_named = pending.step, 1, True
        pending.work = BackgroundTask(lambda: self._read_back(pending, final), READ_TRIES, 1.0)
        yield
        if problem := worst(processes.gather(pending.work.problem)):
            self.saved = before
            if processes.is_rank_zero and problem[0] and final.exists():
                checkpoint_files.quarantine(final)
            self._failed(pending, problem)
            return
        self._on_rank_zero(pending, lambda: self._prune(pending))
        yield
        problem = processes.broadcast(pending.work.problem)
        self._pending = None
        if problem and not problem[0]:
            raise RuntimeError(problem[1])

    def _save(
        self, state: dict[str, Any], tries: int, host_copy: HostCopy | None, is_best: bool = False
    ) -> None:
        step, processes = state["step"], self._processes
        # what is on its way is not the best any more, and not worth more tries
        if is_best and self._pending:
            self._pending.is_best = False
            self._pending.work.no_more_tries()
        self.wait(step)
        self._watchdog.heartbeat(f"saving step {step}")
        newest, nonce = processes.broadcast(
            (newest_attempt(str(self._folder.path)), uuid.uuid4().hex[:8])
        )
        if newest != self._attempt:  # all ranks know it, and none waits for another
            raise RuntimeError(replaced(self._attempt, newest))
        files = collected(self._engine, TAG, {"furnace": state})
        files[f"random-{processes.rank}.pt"] = random_state(processes.device)
        if host_copy:
            files = host_copy.of(files)
        final = self._folder.checkpoint(step)
        aside, described = final.with_name(f"{final.name}.tmp-{nonce}"), FileDigests()
        stage = self._engine.zero_optimization_stage()
        samples = step * self._config.global_batch_size
        facts = {
            "step": step,
            "samples": samples,
            "world_size": processes.world_size,
            "zero_stage": stage,
        }
        facts |= {
            "zero": zero_settings(self._engine),
            "state": state,
            "code_hash": code_hash(),
            "versions": versions(),
        }
        self._due = self._next(step)
        work = BackgroundTask(
            lambda: described.update(write_files(files, aside)), tries, self._watchdog.timeout_s / 2
        )
        self._pending = _Pending(step, aside, facts, is_best, work, described)
        self._stages = self._rest_of(self._pending, before=self.saved)

    def _on_rank_zero(self, pending: _Pending, work: Callable[[], None]) -> None:
        if self._processes.is_rank_zero:
            pending.work = BackgroundTask(
                work, pending.work.most_tries, pending.work.longest_pause_s
            )

    def _name(self, pending: _Pending, final: Path, files: FileDigests, wrote_s: float) -> None:
        began_s = time.monotonic()
        # again: it may have been replaced while it wrote
        check_is_newest(self._folder, self._attempt)
        if pending.aside.exists():  # not, where only what follows is tried again
            checkpoint_files.complete(pending.aside, final, pending.facts, files)
        took_s = wrote_s + time.monotonic() - began_s
        checkpoint_files.note_saved(self._folder, pending.step, self._attempt, took_s)
        self._lead_time.check(took_s)

    def _read_back(self, pending: _Pending, final: Path) -> None:
        try:
            checkpoint_files.read_back(final, pending.described)
        except OSError:
            check_is_newest(self._folder, self._attempt)  # a successor may have deleted it
            raise

    def _prune(self, pending: _Pending) -> None:
        # once more: what is there may be its successor's
        check_is_newest(self._folder, self._attempt)
        best, config = pending.facts["state"].get("best_step", 0), self._config
        checkpoint_files.prune(
            self._folder, pending.step, config.keep_checkpoints, {best}, config.keep_every
        )

    def _failed(self, pending: _Pending, problem: Problem) -> None:
        self._pending = None
        if self._processes.is_rank_zero:
            # what stays is deleted after the next save
            shutil.rmtree(pending.aside, ignore_errors=True)
        self._processes.say(f"checkpoint of step {pending.step} could not be saved: {problem[1]}")
        if not problem[0]:
            raise RuntimeError(problem[1])
        if pending.is_best:
            what = f"the checkpoint of step {pending.step}, the best so far, could not be saved ({problem[1]})"
            raise OSError(errno.EIO, what)
        self._due = self._step + min(self._pause, self._config.checkpoint_every)
        self._pause *= 2

    def _next(self, step: int) -> int:
        """The next step, after this one, at which a checkpoint is due."""
        return (step // self._config.checkpoint_every + 1) * self._config.checkpoint_every
