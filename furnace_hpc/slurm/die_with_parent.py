"""Run a command that is killed with this process.

If a submitter is killed, its sbatch must not submit afterwards: the next command may already have
checked whether the job exists.
"""

import ctypes
import os
import signal
import subprocess
from typing import NamedTuple

PR_SET_PDEATHSIG = 1  # prctl(2); exec keeps it, fork clears it


class Ended(NamedTuple):
    """How a command has ended. Bytes that are no UTF-8, as in a site's banner, are replaced."""

    code: int
    output: str
    error: str


def run(command: list[str], seconds: float) -> Ended:
    """Run `command`. The kernel kills it together with this process.

    After `seconds` it is killed. Then its code is 1, and it has no output: its outcome is unknown.
    """
    pid = os.getpid()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=seconds,
            check=False,
            preexec_fn=lambda: die_with(pid),
        )
    except subprocess.TimeoutExpired:
        return Ended(1, "", "")
    except OSError as error:
        return Ended(1, "", f"{command[0]}: {error.strerror}")
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return Ended(code, *(text.decode("utf-8", "replace") for text in (done.stdout, done.stderr)))


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before prctl
        os._exit(1)
