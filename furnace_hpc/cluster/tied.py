"""Run a command that cannot outlive this submission: `python tied.py SECONDS COMMAND ...`.

A submitter that is killed must not leave an sbatch behind, which would submit after somebody has looked whether it did.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); kept over exec


def main(seconds: int, command: list[str]) -> None:
    """Become `command`, which the kernel kills with this process's parent, or after so many seconds."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        sys.exit(1)
    signal.alarm(seconds)  # kept over exec too; its default is to end the process
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
