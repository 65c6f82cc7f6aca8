"""Start NVIDIA's Multi-Process Service (MPS) for one job, and end it with the job.

    mps.py FOLDER      wait until standard input ends, then end the daemon and remove its folder

The daemon has a private folder. The process of the command above ends it, also if the job's program
is killed. Standard library only, syntax of Python 3.6.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, List, Mapping

CONTROL = "nvidia-cuda-mps-control"
COMM = CONTROL[:15]  # the kernel's name of daemon and servers
START_S = 60.0
QUIT_S = 10
CLOSE_S = 60.0
MAX_FOLDER = 60  # characters: a path of a socket has at most 107
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class MpsError(Exception):
    """MPS cannot be used. The message names the reason."""


def variables_of(folder: str) -> Dict[str, str]:
    """The variables with which processes find a daemon."""
    return {
        "CUDA_MPS_PIPE_DIRECTORY": os.path.join(folder, "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": os.path.join(folder, "log"),
    }


class Mps:
    """A daemon that serves this job's GPUs."""

    def __init__(self) -> None:
        place = tempfile.gettempdir()
        folder = tempfile.mkdtemp(
            prefix="furnace-mps-", dir=place if len(place) <= MAX_FOLDER else "/tmp"
        )
        self.variables = variables_of(folder)
        for path in self.variables.values():
            os.mkdir(path)
        self._guard = _start_guard(folder)

    def start(self, gpus: List[str]) -> None:
        """Start the daemon and a server for GPUs, named by their UUIDs."""
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES=",".join(gpus), **self.variables)
        log = os.path.join(self.variables["CUDA_MPS_LOG_DIRECTORY"], "start.log")
        with open(log, "wb+") as output:  # the daemon inherits it, so it is no pipe
            code = subprocess.call(
                [CONTROL, "-d"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=START_S,
            )
            output.seek(0)
            said = " ".join(output.read().decode("utf-8", "replace").split())[:200]
        if code:
            raise MpsError(f"{CONTROL} -d exits with {code}" + (f": {said}" if said else ""))
        _ask(f"start_server -uid {os.getuid()}", environment)
        deadline = time.monotonic() + START_S
        while not _ask("get_server_list", environment).split():
            if time.monotonic() > deadline:
                raise MpsError(f"no MPS server has started in {START_S:.0f} s")
            time.sleep(0.2)

    def close(self) -> None:
        """End the daemon and remove its folder."""
        try:
            self._guard.stdin.close()
            self._guard.wait(CLOSE_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"MPS has not ended: {error}", flush=True)


def start_mps(gpus: List[str]) -> Mps:
    """Start MPS for these GPUs.

    Raises:
        MpsError: it cannot be used.
    """
    if shutil.which(CONTROL) is None:
        raise MpsError(f"the node has no {CONTROL}")
    try:
        mps = Mps()
    except OSError as error:
        raise MpsError(f"its folder was not made: {error}")
    try:
        mps.start(gpus)
    except BaseException as error:
        mps.close()
        if isinstance(error, (OSError, subprocess.SubprocessError)):
            raise MpsError(str(error))
        raise
    return mps


def _ask(command: str, environment: Mapping[str, str]) -> str:
    """Send a command to the daemon. Returns its answer."""
    done = subprocess.run(
        [CONTROL],
        input=(command + "\n").encode("ascii"),
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=START_S,
        check=False,
    )
    answer = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        said = " ".join(answer.split())[:200]
        raise MpsError(f"{CONTROL} does not answer to {command.split()[0]}: {said}")
    return answer


def _start_guard(folder: str) -> Any:
    """The process that ends the daemon when this process ends, or closes its input."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", os.path.abspath(__file__), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _guard(folder: str) -> None:
    """End the daemon after the end of standard input. Slurm's signals do not end this process."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    try:
        _ask(f"quit -t {QUIT_S}", dict(os.environ, **variables_of(folder)))
    except (MpsError, OSError, subprocess.SubprocessError):
        pass  # it has not started, or it hangs
    deadline = time.monotonic() + QUIT_S
    while any(True for _ in _processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in _processes(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: str) -> Iterator[int]:
    """The daemon and the servers of this folder."""
    wanted = f"CUDA_MPS_PIPE_DIRECTORY={variables_of(folder)['CUDA_MPS_PIPE_DIRECTORY']}"
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/comm") as file:
                is_mps = file.read().startswith(COMM)
            with open(f"/proc/{name}/environ", "rb") as content:
                is_ours = wanted.encode("utf-8") in content.read().split(b"\0")
        except OSError:  # it has ended, or belongs to another user
            continue
        if is_mps and is_ours:
            yield int(name)


if __name__ == "__main__":
    _guard(sys.argv[1])
