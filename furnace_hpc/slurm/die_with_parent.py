"""Run a command that is killed with its parent: `python die_with_parent.py SECONDS COMMAND ...`.

If a submitter is killed, its sbatch must not submit afterwards: the next command may already have
checked whether the job exists. Bytes that are no UTF-8, for example in a site's banner, are
replaced, because submitit cannot read them.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); exec keeps it, fork clears it


def main(seconds: int, command: list[str]) -> int:
    """Run `command`, print its output and return its exit code.

    The kernel kills `command` together with this process, and this process together with its
    parent.
    """
    die_with(os.getppid())
    pid = os.getpid()
    try:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: die_with(pid),
        )
        out, error = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        return 1  # no output: the outcome is not known
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 1
    for stream, output in ((sys.stdout, out), (sys.stderr, error)):
        stream.buffer.write(output.decode("utf-8", "replace").encode())
    code = child.returncode
    return code if code >= 0 else 128 - code


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before prctl
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
