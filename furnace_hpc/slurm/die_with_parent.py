"""Run a command that cannot outlive this submission: `python tied.py SECONDS COMMAND ...`, and print what it prints.

A submitter that is killed must not leave an sbatch behind, which would submit after somebody has looked whether it did.
Bytes that are no UTF-8, of a site's banner for example, are replaced: submitit cannot read them.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); kept over exec


def main(seconds: int, command: list[str]) -> int:
    """Run `command`, which the kernel kills with this process, as it kills this one with its parent; its exit code."""
    _die_with(os.getppid())
    pid = os.getpid()
    try:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: _die_with(pid),
        )
        out, error = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        return 1  # without a word: nobody knows what came of it
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 1
    for stream, words in ((sys.stdout, out), (sys.stderr, error)):
        stream.buffer.write(words.decode("utf-8", "replace").encode())
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
