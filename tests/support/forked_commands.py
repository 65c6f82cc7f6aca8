"""Commands of Furnace as real child processes, forked from a server that has imported them.

The imports are most of the cost of a command: half a second to five seconds of a core. A forked
command has its own process, streams, working directory, environment and exit code. It cannot show
which modules a command loads, nor what Python reads at its start. Tests of these start Python.
The workers of pytest-xdist share the servers.
"""

import atexit
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

from end_with import MARK, OUTER_TOKEN

PACKAGE = "furnace_hpc."
COMMANDS = ("submit", "status", "cancel", "aggregate", "schema", "doctor")
COMMANDS += ("export", "predict", "pack", "drill", "train", "new")
LIGHT = ("numpy", "polars", "scipy.stats", "matplotlib.pyplot")
LIGHT += ("furnace_hpc.tables.output.report", "furnace_hpc.launch.local_queue")
NEED_TORCH = ("pack", "predict")
HEAVY = ("torch", "sklearn.datasets", "librosa", "soundfile", "transformers.models.bert")
HEAVY += ("furnace_hpc.data.packing.pack", "furnace_hpc.inference.predictor")
HEAVY += ("furnace_hpc.data.packing.rendering", "librosa.feature.spectral")
HEAVY += (
    "furnace_hpc.data.table.cells",
    "furnace_hpc.data.table.plan",
    "furnace_hpc.data.sets.tridigits.pack",
)
HEAVY += ("furnace_hpc.data.sets.mmimdb_hdf5", "furnace_hpc.data.sets.audioset")
# Python and its libraries read these when they start.
AT_START = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "LD_", "HF_", "MPL", "NUMBA_", "DS_")
MOST_BYTES = 200_000
RUN_OF_TESTS = "PYTEST_XDIST_TESTRUNUID"
_servers: list["subprocess.Popen[bytes]"] = []


def run(
    command: list[str],
    cwd: Path | str | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run(command, stdin=DEVNULL, capture_output=True, text=True).

    `command` is [sys.executable, "-m", "furnace_hpc.X", ...]. If `env` changes what Python reads at
    its start, a new interpreter runs it.
    """
    env = dict(os.environ if env is None else env)
    if _at_start(env) != _at_start(dict(os.environ)):
        kinds: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(command, cwd=cwd, env=env, timeout=timeout, check=False, **kinds)
    assert command[:2] == [sys.executable, "-m"]
    asked = {"module": command[2], "arguments": command[3:], "environment": env}
    asked |= {"cwd": str(Path.cwd() if cwd is None else cwd), "umask": _umask()}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error, _socket() as server:
        server.settimeout(timeout)
        server.connect(_address(_needs_torch(command)))
        socket.send_fds(server, [json.dumps(asked).encode()], [out.fileno(), error.fileno()])
        pid = int(server.recv(64))
        try:
            code = int(server.recv(64))
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout) from None
        return subprocess.CompletedProcess(command, code, _text(out), _text(error))


def _needs_torch(command: list[str]) -> bool:
    return command[2].removeprefix(PACKAGE) in NEED_TORCH and "--help" not in command


def _at_start(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(AT_START)}


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@cache
def _address(needs_torch: bool) -> str:
    """Return the address of a server. If no worker has started it, this one does.

    It ends with the process that gives tests to the workers, or with this one if there are none.
    """
    is_worker = RUN_OF_TESTS in os.environ
    name = os.environ.get(RUN_OF_TESTS) or str(os.getpid())
    address = f"\0furnace-tests-{name}-{int(needs_torch)}"
    environment = dict(os.environ)
    if is_worker:
        environment[MARK] = OUTER_TOKEN
    owner = str(os.getppid() if is_worker else os.getpid())
    words = [sys.executable, __file__, address[1:], owner, *(["torch"] if needs_torch else [])]
    with Path(tempfile.gettempdir(), f"{address[1:]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _answers(address):
            kinds: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
            server = subprocess.Popen(words, env=environment, **kinds)
            _servers.append(server)
            assert server.stdout
            assert server.stdout.readline() == b"ready\n"
        Path(lock.name).unlink(missing_ok=True)
    return address


def _answers(address: str) -> bool:
    with _socket() as server:
        return server.connect_ex(address) == 0


# --- in the server ---


def _serve(address: str, owner: int, modules: tuple[str, ...]) -> dict[str, Any]:
    """Answer requests until the owner ends. Returns, in a new process, what that is to run."""
    ended = os.pidfd_open(owner)
    listener = _socket()
    listener.bind("\0" + address)
    listener.listen(16)
    for module in (*(PACKAGE + name for name in COMMANDS), *modules):
        import_module(module)
    for name in COMMANDS:  # runpy wants to import it itself
        del sys.modules[PACKAGE + name]
    gc.freeze()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no ended process stays as a zombie
    while True:
        if ended in select.select([listener, ended], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            os.close(ended)
            return _start(connection)
        connection.close()


def _start(connection: socket.socket) -> dict[str, Any]:
    """Return the request in a new process. This process tells how that one ended."""
    data, files, _, _ = socket.recv_fds(connection, MOST_BYTES, 2)
    if not data:
        os._exit(0)  # a worker asked whether there is a server
    if pid := os.fork():
        connection.send(str(pid).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            connection.send(str(code).encode())
        os._exit(0)
    connection.close()
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), *files)):
        os.dup2(file, number)
        os.close(file)
    return json.loads(data)


def _start_fork_server() -> None:
    """Fork the server from which multiprocessing forks decoders, before there are threads.

    A new interpreter would import the decoders again for each command.
    """
    start = util.spawnv_passfds

    def fork(path: bytes, words: list[str], passed: list[int]) -> int:
        if "multiprocessing.forkserver" not in words[-1]:
            return start(path, words, passed)
        if pid := os.fork():
            return pid
        for entry in list(Path("/proc/self/fd").iterdir()):
            if int(entry.name) not in (0, 1, 2, *passed):
                with suppress(OSError):
                    os.close(int(entry.name))
        try:
            exec(words[-1], {})  # what the new interpreter would run: it ends with SystemExit
        finally:
            os._exit(0)

    util.spawnv_passfds = fork
    forkserver.ensure_running()
    util.spawnv_passfds = start


def _become(module: str, arguments: list[str], cwd: str, environment: dict, umask: int) -> int:
    """Run a command as `python -m` does. Return its exit code."""
    os.umask(umask)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = [module, *arguments], cwd
    if module.removeprefix(PACKAGE) in NEED_TORCH:
        _start_fork_server()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    CODE = _become(**_serve(sys.argv[1], int(sys.argv[2]), HEAVY if sys.argv[3:] else LIGHT))
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(CODE)  # the interpreter's shutdown would write to all of torch's memory
