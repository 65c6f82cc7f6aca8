"""Measure a way of loader.py in a process of its own, without threads or maps of other ways."""

import json
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import loader_ways as ways
from loader_memory import join

LIMIT_S = 90
WATCH_S = 0.1  # between two calls of `watch`


def in_a_process(
    target: Callable[..., None],
    *args: Any,
    answers: int = 1,
    limit_s: float = LIMIT_S,
    watch: Callable[[], None] = lambda: None,
) -> list[float]:
    """Call `target(connection, *args)` in a new process and return what it sends.

    Fewer answers come if the process dies or needs longer than `limit_s`. `watch` is called now
    and then while the process works.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loader_ways"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(there, *args))
    process.start()
    there.close()
    received: list[float] = []
    ends_s = time.monotonic() + limit_s
    try:
        while len(received) < answers and time.monotonic() < ends_s:
            watch()
            if here.poll(WATCH_S):
                received.append(here.recv())
    except EOFError:  # the process died, and its error is printed above
        pass
    finally:
        process.kill()
        process.join()
    return received


def rate(answer: Connection, folder: Path, way: str, at_least_s: float | None) -> None:
    """Send samples per second of the first epoch.

    With `at_least_s`, measure as many later epochs as take this long.
    """
    # fork workers, as without the server that started this process
    multiprocessing.set_start_method("fork", force=True)
    epoch = ways.OPEN[way](folder)
    if at_least_s is not None:
        sum(epoch())  # then everything is in memory, and workers have started
    count, started_s = 0, time.perf_counter()
    while not count or time.perf_counter() - started_s < (at_least_s or 0):
        for number in epoch():
            count += number
    answer.send(count / (time.perf_counter() - started_s))
    _wait_for_the_end(LIMIT_S)


def passes(answer: Connection, folder: Path, way: str, group: Path, number: int) -> None:
    """Send samples per second of each of the first epochs, from inside a memory cgroup."""
    join(group)
    multiprocessing.set_start_method("fork", force=True)
    epoch = ways.OPEN[way](folder)
    for _ in range(number):
        started_s = time.perf_counter()
        count = sum(epoch())
        answer.send(count / (time.perf_counter() - started_s))
    _wait_for_the_end(LIMIT_S)


def _wait_for_the_end(limit_s: float) -> None:
    """Wait until the parent kills this process: some loaders never end."""
    for worker in multiprocessing.active_children():
        worker.kill()
    time.sleep(limit_s)


def drop_caches(folder: Path) -> bool:
    """Remove the files from the page cache. Return whether none of their pages is left.

    The kernel drops clean pages that are not mapped.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not shutil.which("fincore"):
        return False  # unknown
    shown = subprocess.run(
        ["fincore", "--bytes", "--json", *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
    )
    resident = sum(int(file["res"]) for file in json.loads(shown.stdout)["fincore"])
    return resident < 0.02 * sum(path.stat().st_size for path in files)
