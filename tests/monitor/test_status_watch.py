"""The real `status --watch` on a pseudo-terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from watch_study import make

from furnace_hpc.runs.folder import GridFolder


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    return make(tmp_path)


class Terminal:
    """`furnace status` on a pseudo-terminal, with its output."""

    def __init__(self, folder: GridFolder, *arguments: str, **variables: str) -> None:
        command = [sys.executable, "-m", "furnace_hpc.status", "--grid", "study", *arguments]
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("FURNACE_RUNS", "NO_COLOR")
        }
        self.master, slave = pty.openpty()
        environment = (
            kept
            | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "20", "PATH": "/nowhere"}
            | variables
        )
        self.process = subprocess.Popen(
            command,
            cwd=folder.path.parent.parent,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def read(self, until: str = "", timeout_s: float = 60) -> str:
        """Read the output until it holds `until`, or until the process ends."""
        deadline, said = time.monotonic() + timeout_s, ""
        while not (until and until in said):
            assert time.monotonic() < deadline, said
            if select.select([self.master], [], [], 0.5)[0]:
                try:
                    said += os.read(self.master, 65536).decode()
                except OSError:  # Linux: no process has the terminal open any more
                    break
        self.said += said
        return said


@pytest.mark.parametrize("number_", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_restores_the_terminal(folder, number_):
    terminal = Terminal(folder, "--watch", NO_COLOR="1")
    try:
        first = terminal.read(until="4 runs: 1 new, 1 running, 1 done, 1 failed")
        assert "\x1b[?1049h" in first
        assert "\x1b[?25l" in first
        terminal.process.send_signal(number_)
        after = terminal.read()
        assert terminal.process.wait(30) == 130
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    # on the screen from before; the alternate one may have been drawn once more
    left = after.partition("\x1b[?1049l")[2]
    assert "base-s1" in left
    assert terminal.said.rindex("\x1b[?25h") > terminal.said.rindex("\x1b[?25l")
    assert "4 runs: 1 new, 1 running, 1 done, 1 failed" in left
    assert "Traceback" not in terminal.said
    assert not re.search("\x1b\\[[0-9;]*3[0-7]m", terminal.said), "no colour"


def test_a_dumb_terminal_gets_plain_lines(folder):
    terminal = Terminal(folder, TERM="dumb")
    said = terminal.read()
    assert terminal.process.wait(30) == 0
    os.close(terminal.master)
    assert "\x1b" not in said
    assert said.splitlines()[0].split()[:3] == ["run", "state", "attempt"]
