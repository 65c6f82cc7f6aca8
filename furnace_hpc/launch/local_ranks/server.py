"""Fork the ranks of runs from one process that has imported torch and DeepSpeed.

    python -m furnace_hpc.launch.local_ranks.server QUEUE_PID     its stdin is a socket to the queue

It runs from a code snapshot, in the environment of that code's runs. For each request it forks a
controller, which becomes a child of the queue and answers with its own process id. So runs do not
depend on the server. Controllers and ranks share its memory until they write.
"""

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from furnace_hpc.host.lifecycle import START_S
from furnace_hpc.launch.local_ranks.controller import control, log_of, rank_variables, write_to
from furnace_hpc.launch.rank_main import check_code, run_task
from furnace_hpc.slurm.die_with_parent import die_with

MAX_MESSAGE = 65536
ADOPTION_S = 10.0  # at most, until the queue is a controller's parent
ENDING_S = 2.0  # at most, until a thread that ends has left the process
ARG_START, ARG_END = 45, 46  # fields of /proc/self/stat after the program's name

Request = dict[str, Any]


def main(queue: int) -> None:
    """Import what ranks need, then serve until the queue closes the connection."""
    die_with(queue)
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    check_code()
    # A file system may hang during the imports. Then the queue starts fresh processes.
    faulthandler.dump_traceback_later(START_S, exit=True)
    from furnace_hpc.engine.preload import preload

    preload()
    faulthandler.cancel_dump_traceback_later()
    _wait_for_one_thread()  # the one of faulthandler may still end
    while message := connection.recv(MAX_MESSAGE):
        _serve(connection, json.loads(message), queue)


def _serve(connection: socket.socket, request: Request, queue: int) -> None:
    """Fork a controller for one run, through a process that ends at once."""
    if (threads := _count_threads()) > 1:
        # a fork has only one of them, and locks of the others would stay closed in it
        return _answer(connection, request, problem=f"the rank server has {threads} threads")
    try:
        middle = os.fork()
    except OSError as error:
        return _answer(connection, request, problem=f"fork: {error.strerror}")
    if middle:
        os.waitpid(middle, 0)
        return None
    try:
        if os.fork() == 0:
            _control(connection, request, queue)
    except OSError as error:
        _answer(connection, request, problem=f"fork: {error.strerror}")
    finally:
        os._exit(0)


def _count_threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _wait_for_one_thread() -> None:
    """Wait a short time for threads that are about to end. Others are reported by `_serve`."""
    deadline_s = time.monotonic() + ENDING_S
    while _count_threads() > 1 and time.monotonic() < deadline_s:
        time.sleep(0.001)


def _control(connection: socket.socket, request: Request, queue: int) -> NoReturn:
    """Control the ranks of one run. This process is a fork of the server."""
    code = 1
    try:
        if not _wait_for_parent(queue):
            _answer(connection, request, problem=f"the queue has not adopted {os.getpid()}")
            os._exit(1)
        die_with(queue, signal.SIGTERM)
        os.environ.update(request["environment"])
        set_title(f"furnace controller: {request['run_id']}")
        _answer(connection, request, pid=os.getpid())
        connection.close()
        controller = os.getpid()
        code = control(lambda rank: _start(rank, controller, request), request["world_size"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _start(rank: int, controller: int, request: Request) -> int:
    """Fork one rank. Return its process id."""
    if pid := os.fork():
        return pid
    try:
        die_with(controller)
        write_to(log_of(Path(request["submission"]), controller, rank))
        os.environ.update(rank_variables(rank))
        set_title(f"furnace rank {rank}: {request['run_id']}")
        run_task(request["submission"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _wait_for_parent(queue: int) -> bool:
    """Wait until the queue is the parent of this process: the one between them has ended."""
    deadline_s = time.monotonic() + ADOPTION_S
    while os.getppid() != queue:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.001)
    return True


def _answer(connection: socket.socket, request: Request, **answer: int | str) -> None:
    connection.send(json.dumps({"number": request["number"], **answer}).encode())


def set_title(title: str) -> None:
    """Replace the command line that ps shows for this process."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, size = int(fields[ARG_START]), int(fields[ARG_END]) - int(fields[ARG_START])
    text = title.encode()[: size - 1]
    ctypes.memmove(start, text.ljust(size, b"\0"), size)


if __name__ == "__main__":
    main(int(sys.argv[1]))
