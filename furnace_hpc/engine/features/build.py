"""Compute the features of frozen encoders once, with all ranks, or open what a run has stored.

If they cannot be stored, for example on a full disk, they are computed in each step instead. That
gives the same numbers, because the features of a sample never depend on other samples.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.columns import Columns
from furnace_hpc.data.features.reader import FromFiles, Source
from furnace_hpc.data.features.store import (
    DESCRIPTION,
    Entries,
    PartWriter,
    StoredFeatures,
    found_entries,
    part_numbers,
    put_aside,
    write_description,
)
from furnace_hpc.engine.features.compute import Computed
from furnace_hpc.engine.features.identity import digest_of, source_of
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.stop import StopRequest
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.model.fine_tuning import encoders_of
from furnace_hpc.model.frozen_features import FrozenEncoder
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.trust import check_place, check_trusted

# Environment variable. With the value `compute` features are computed in each step.
CACHE = "FURNACE_FEATURES"
ROWS = 32  # samples of a rank between two looks at the other ranks
POLL_S = 0.5  # how often a run looks whether another one has computed the features
ROOM = 1.02  # free space that is needed, as a multiple of the features
T = TypeVar("T")


class FeatureShape(NamedTuple):
    """The shape of a sample's features."""

    tokens: int
    """Of the longest sample."""
    width: int


class Features(NamedTuple):
    """The features of a modality, and the shape of the longest sample's."""

    source: Source
    shape: FeatureShape


NO_FEATURES: Mapping[str, Features] = {}


class _Work(NamedTuple):
    """What is needed to compute the features of one encoder."""

    run: RunFolder
    place: Path
    """The folder of the complete features."""
    computed: Computed
    source: dict[str, Any]
    """What the features depend on."""
    processes: Processes
    watchdog: Watchdog
    stop: StopRequest

    @property
    def building(self) -> Path:
        """The folder of features that are not complete."""
        return self.place.with_name(f"{self.place.name}.building-{self.run.run_id}")

    def pause(self, activity: str) -> None:
        """Collective. Report progress. Raise Stopped if a rank has received a stop signal."""
        self.watchdog.heartbeat(f"features of {self.computed.modality}: {activity}")
        self.stop.check(self.processes)


def frozen_features(
    model: torch.nn.Module,
    config: TrainConfig,
    columns: Columns,
    run: RunFolder,
    processes: Processes,
    watchdog: Watchdog,
    stop: StopRequest,
) -> dict[str, Features]:
    """Collective. Modality -> features, for the encoders with `cache_features`.

    Args:
        model: the network with its first weights, whole on every rank.
        config: of the run.
        columns: the packed data set.
        run: the folder of the run. Features are stored beside it, for all runs of the grid.
        processes: the ranks. Each computes a share.
        watchdog: gets a heartbeat at all progress.
        stop: the run's stop requests.

    Raises:
        ConfigError: an encoder is trained, or other users could change the files.
        Stopped: a rank has received a stop signal.
    """
    found = {}
    for name in config.model.cached_modalities:
        watchdog.heartbeat(f"features of {name}")
        dtype = torch.bfloat16 if config.deepspeed.precision == "bf16" else torch.float32
        encoder = FrozenEncoder(name, encoders_of(model)[name], processes.device, dtype)
        computed = Computed(encoder, columns, processes.device, dtype)
        source = source_of(encoder, config, columns.manifest, processes.device)
        source |= {"dtype": computed.layout.dtype}
        source = processes.broadcast(source)  # nodes may have other models of CPUs
        place = GridFolder(run.path.resolve().parent).features / digest_of(source)
        work = _Work(run, place, computed, source, processes, watchdog, stop)
        found[name] = _features(work)
    if found and processes.device.type == "cuda":  # the peak is that of the training
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(processes.device)
    return found


def _features(work: _Work) -> Features:
    """Collective. Features from files, if they can be stored."""
    computed, processes = work.computed, work.processes
    problem = f"{CACHE} is compute"
    if os.environ.get(CACHE) != "compute":
        with _only_run(work) as problem:
            if not problem:
                problem = _build(work)
    if problem:
        processes.print_once(
            f"WARNING: features of {computed.modality} are computed in each step, not stored: "
            f"{problem}"
        )
        return Features(computed, FeatureShape(computed.most_tokens, computed.layout.width))
    _on_rank_zero(work, lambda: _check_trusted(work.place))
    stored = StoredFeatures(work.place)
    processes.print_once(
        f"features of {computed.modality}: read from {work.place}, "
        f"{stored.num_bytes / 2**20:,.1f} MiB"
    )
    is_pinned = processes.device.type == "cuda"
    shape = FeatureShape(stored.tokens, stored.layout.width)
    return Features(FromFiles(stored, is_pinned), shape)


def _on_rank_zero(work: _Work, function: Callable[[], T]) -> T:
    """Collective. The answer of a function that only rank 0 calls. All raise its errors."""
    problem, answer = "", cast(T, None)
    if work.processes.is_rank_zero:
        try:
            answer = function()
        except ConfigError as error:
            problem = str(error)
    problem, answer = work.processes.broadcast((problem, answer))
    if problem:
        raise ConfigError(problem)
    return answer


def _check_trusted(folder: Path) -> None:
    """Raise Untrusted if other users could have changed the features of a grid."""
    check_trusted(folder, folder.parents[2])


@contextmanager
def _only_run(work: _Work) -> Iterator[str]:
    """Collective. Wait until no other run computes the same features. Yield why it cannot be done.

    The lock ends with its process. Where the file system has no locks, runs compute at once, each
    in a folder of its own.
    """
    path, lock = work.place.with_name(f"{work.place.name}.lock"), -1

    def open_lock() -> str:
        nonlocal lock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_place(work.place, path.parents[2])
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            return ""
        except OSError as error:
            return _reason(error)

    problem = _on_rank_zero(work, open_lock)
    try:
        while not problem and not _on_rank_zero(work, lambda: _is_taken(lock)):
            work.pause("waiting for another run that computes them")
            time.sleep(POLL_S)
        yield problem
    finally:
        if lock >= 0:
            os.close(lock)


def _is_taken(lock: int) -> bool:
    """Take the lock, if no other process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _reason(error: OSError) -> str:
    return f"{error.filename or 'a file'}: {error.strerror or error}"


def _build(work: _Work) -> str:
    """Collective. Compute what is not stored yet. Return why it cannot be stored."""
    known = _on_rank_zero(work, lambda: _begin(work))
    if known is None:
        return ""
    if isinstance(known, str):
        return known
    number, is_known = known
    start_s = time.monotonic()
    problem = _write_share(work, number, is_known)
    if problem:
        _on_rank_zero(work, lambda: shutil.rmtree(work.building, ignore_errors=True))
        return problem
    problem = _on_rank_zero(work, lambda: _finish(work))
    if not problem:
        work.processes.print_once(
            f"features of {work.computed.modality}: computed in {time.monotonic() - start_s:.1f} s"
        )
    return problem


def _begin(work: _Work) -> str | tuple[int, dict[str, NDArray[np.bool_]]] | None:
    """Find out what is stored. Runs on rank 0.

    Returns:
        None if all is. Why nothing can be stored. Or the number of the next part, and split -> the
        samples that a stopped attempt of this run has computed.
    """
    if work.place.exists() and _is_whole(work.place):
        return None
    try:
        if work.place.exists():
            put_aside(work.place)
        work.building.mkdir(exist_ok=True)
        _check_trusted(work.building)
        with suppress(FileNotFoundError):
            (work.building / DESCRIPTION).unlink()
        entries = found_entries(work.building, work.computed.sizes, work.computed.layout)
        free = shutil.disk_usage(work.building).free
    except OSError as error:
        return _reason(error)
    known = {split: found[:, 2] > 0 for split, found in entries.items()}
    left = sum(int((~of_split).sum()) for of_split in known.values())
    needed = left * work.computed.layout.num_bytes(work.computed.most_tokens)
    if free < needed * ROOM:
        return (
            f"{work.place.parent} has {free / 2**30:.1f} GiB free, and they take up to "
            f"{needed / 2**30:.1f} GiB"
        )
    numbers = part_numbers(work.building)
    return max(numbers, default=-1) + 1, known


def _is_whole(place: Path) -> bool:
    _check_trusted(place)
    try:
        StoredFeatures(place)
        return True
    except ConfigError as error:
        with suppress(OSError):  # the log may be on a full disk
            print(f"WARNING: {error}. They are computed again", flush=True)
        return False


def _write_share(work: _Work, number: int, known: dict[str, NDArray[np.bool_]]) -> str:
    """Collective. Compute this rank's share. Return why a rank cannot write."""
    processes, computed, problem = work.processes, work.computed, ""
    todo = [
        (place, int(row))
        for place, split in enumerate(computed.sizes)
        for row in np.flatnonzero(computed.present(split) & ~known[split])
    ]
    mine, names = todo[processes.rank :: processes.world_size], list(computed.sizes)
    longest = -(-len(todo) // processes.world_size)
    try:
        with PartWriter(work.building, number + processes.rank) as part:
            for first in range(0, longest, ROWS):
                try:
                    for split, row in mine[first : first + ROWS]:
                        part.add(split, row, *computed.of_sample(names[split], row))
                except OSError as error:
                    problem = _reason(error)
                if processes.all_reduce_max(bool(problem))[0]:
                    break
                work.pause(f"{first:,} of {longest:,} samples of this rank")
    except OSError as error:
        problem = _reason(error)
    problems = [problem for problem in processes.gather(problem) if problem]
    return problems[0] if problems else ""


def _finish(work: _Work) -> str:
    """Complete the folder and rename it. Return why that fails. Runs on rank 0."""
    computed = work.computed
    try:
        entries: dict[str, Entries] = found_entries(work.building, computed.sizes, computed.layout)
        for split, found in entries.items():
            missing = int((computed.present(split) & (found[:, 2] == 0)).sum())
            if missing:
                return f"{missing} samples of split {split} could not be read back"
        write_description(work.building, entries, computed.layout, work.source)
        if work.place.exists():  # a run without the lock was faster
            shutil.rmtree(work.building, ignore_errors=True)
        else:
            work.building.rename(work.place)
        return ""
    except OSError as error:
        return _reason(error)
