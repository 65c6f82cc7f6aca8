"""Attempts of a run whose ranks are killed at a given point.

Ranks are forked from a process that has imported DeepSpeed, so an attempt takes two seconds instead
of ten. All else is as in a job: begin, train, decide, begin again.
"""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forked_ranks import forked, wait_for

LIMIT_S = 240
COPY_S = 0.01  # of each storage
SYNCS = ("before", "torn", "after")
RENAMES = ("before", "after")


@dataclass(frozen=True)
class Point:
    """One rank kills itself when it reaches a point of this kind for the `nth` time.

    - start: before anything is loaded.
    - train, evaluation: `seconds` after a step, or a batch of an evaluation, has begun.
    - copy: `seconds` after a thread has begun to copy a part of the state to host memory.
    - save: before or after the fsync of a checkpoint's file, or with a torn file.
    - rename: before or after a checkpoint is renamed.
    - delete: with an old checkpoint partly deleted.
    - result: before or after result.json is renamed.
    - time: `seconds` after the ranks were started.
    - stop: not killed, but gets a TERM signal when it begins the activity `how`.
    """

    kind: str
    nth: int = 1
    rank: int = 0
    how: str = ""
    seconds: float = 0.0
    fraction: float = 0.5


def run_attempt(
    folder: Path, data_dir: Path, world_size: int, point: Point | None
) -> tuple[str, int]:
    """Run one attempt. Return `decide`'s answer and the number of ranks that were killed.

    No rank outlives the call. As under srun, the peers of a killed rank end at once.
    """
    from furnace_hpc.host import lifecycle
    from furnace_hpc.runs.code import code_hash

    facts = {
        "code_hash": code_hash(),
        "world_size": world_size,
        "data_dir": str(data_dir),
        "overrides": {},
    }
    attempt = lifecycle.begin(str(folder), facts)
    dies = asdict(point) if point else None
    with forked(world_size, _rank, world_size, str(folder), attempt, dies) as ranks:
        wait_for(ranks, point.seconds if point and point.kind == "time" else LIMIT_S)
    codes = [rank.exitcode for rank in ranks]
    return lifecycle.decide(
        str(folder), attempt, max(abs(code or 0) for code in codes)
    ), codes.count(-signal.SIGKILL)


def _rank(
    rank: int, world_size: int, folder: str, attempt: int, point: dict[str, Any] | None
) -> None:
    from furnace_hpc.engine.loop import train
    from furnace_hpc.engine.ranks.distributed import RankInfo
    from furnace_hpc.runs.folder import RunFolder
    from furnace_hpc.runs.records.verdict import RankVerdict

    run = RunFolder(Path(folder))
    log = os.open(run.log(attempt, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _note_samples(run, attempt, rank)
    _slow_copies()
    if point and point["rank"] == rank:
        arrange_death(Point(**point))
    with RankVerdict(run, attempt, rank) as verdict:
        code = train(
            run, attempt, RankInfo(rank, rank, world_size, run.rendezvous(attempt)), verdict
        )
    os._exit(code)


def _note_samples(run: Any, attempt: int, rank: int) -> None:
    """Record which samples this rank trains on."""
    from furnace_hpc.data.loading.prefetch import TrainBatches

    path = run.path / "order" / f"{attempt}-{rank}.jsonl"
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    of_step = TrainBatches.of_step

    def noted(self: TrainBatches, step: int) -> Any:
        for micro_step, batch in enumerate(of_step(self, step)):
            os.write(
                descriptor,
                (json.dumps([rank, step, micro_step, *batch.rows.tolist()]) + "\n").encode(),
            )
            yield batch

    TrainBatches.of_step = noted


def _slow_copies() -> None:
    """Let the copy to host memory last about as long as the next step of the tiny network."""
    from furnace_hpc.engine.checkpoint import host_copy

    copy = host_copy.copy_storage

    def slow(source: Any, target: Any) -> None:
        time.sleep(COPY_S)
        copy(source, target)

    host_copy.copy_storage = slow


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(point: Point) -> None:
    """Make this process kill itself at the point."""
    comes = _countdown(point.nth)
    if point.kind == "start":
        die()
    elif point.kind in ("train", "evaluation"):
        _die_during("step" if point.kind == "train" else "evaluation", comes, point.seconds)
    elif point.kind == "stop":
        _stop_during(point.how)
    elif point.kind == "copy":
        _die_in_copy(comes, point.seconds)
    elif point.kind == "save":
        _die_at_fsync(comes, point)
    elif point.kind in ("rename", "result"):
        _die_at_rename("/checkpoints/" if point.kind == "rename" else "/result.json", comes, point)
    elif point.kind == "delete":
        _die_at_deletion(comes)
    elif point.kind != "time":
        raise ValueError(f"unknown kind of point: {point.kind}")


def _countdown(nth: int) -> Any:
    left = [nth]

    def comes() -> bool:
        left[0] -= 1
        return left[0] == 0

    return comes


def _die_during(activity: str, comes: Any, seconds: float) -> None:
    from furnace_hpc.engine.ranks.watchdog import Watchdog

    heartbeat = Watchdog.heartbeat

    def observed(self: Watchdog, now: str) -> None:
        heartbeat(self, now)
        if now.startswith(activity) and comes():
            threading.Timer(seconds, die).start()

    Watchdog.heartbeat = observed


def _stop_during(activity: str) -> None:
    from furnace_hpc.engine.ranks.watchdog import Watchdog

    heartbeat = Watchdog.heartbeat

    def observed(self: Watchdog, now: str) -> None:
        heartbeat(self, now)
        if now.startswith(activity):
            os.kill(os.getpid(), signal.SIGTERM)

    Watchdog.heartbeat = observed


def _die_in_copy(comes: Any, seconds: float) -> None:
    from furnace_hpc.engine.checkpoint import host_copy

    copy = host_copy.copy_storage

    def deadly(source: Any, target: Any) -> None:
        if comes():
            time.sleep(seconds)
            die()
        copy(source, target)

    host_copy.copy_storage = deadly


def _die_at_fsync(comes: Any, point: Point) -> None:
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        mine = "/checkpoints/" in str(path) and comes()
        if mine and point.how == "torn" and path.is_file():
            os.truncate(path, int(path.stat().st_size * point.fraction))
        if mine and point.how != "after":
            die()
        fsync(descriptor)
        if mine:
            die()

    os.fsync = synced


def _die_at_rename(place: str, comes: Any, point: Point) -> None:
    def deadly(rename: Any) -> Any:
        def renamed(source: Any, target: Any, **more: Any) -> None:
            mine = place in str(target) and comes()
            if mine and point.how == "before":
                die()
            rename(source, target, **more)
            if mine:
                die()

        return renamed

    os.rename, os.replace = deadly(os.rename), deadly(os.replace)


def _die_at_deletion(comes: Any) -> None:
    rmtree = shutil.rmtree

    def deleted(path: Any, *arguments: Any, **more: Any) -> None:
        if "/checkpoints/step-" in str(path) and ".tmp-" not in str(path) and comes():
            next(Path(path).rglob("*.pt")).unlink()
            die()
        rmtree(path, *arguments, **more)

    shutil.rmtree = deleted
