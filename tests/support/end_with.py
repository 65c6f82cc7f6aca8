"""Kill all processes that a test run leaves, however it ends.

    python end_with.py PID START TOKEN

conftest.py starts it. It waits until that process is gone, also after SIGKILL. Every process of
the run inherits the token in its environment. Daemons, nodes, jobs and ranks leave the session and
process group of the run and become children of init. So only the token identifies them.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO

MARK = "TESTS_OF_FURNACE"  # no prefix that tests take out of the environment
# In a worker of pytest-xdist: the token of the process that gives it tests.
OUTER_TOKEN = os.environ.get(MARK, "")
GRACE_S, INSTALL_S = 3, 240
INSTALLERS = ("apt-get", "apt", "dpkg")  # half a package would be left


def end_with_this_process() -> IO[bytes]:
    """Mark all processes that this one starts from now on, and start the process that kills them.

    It also unmounts file systems below the folder whose path is written to the returned file.
    """
    pid = os.getpid()
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    os.environ[MARK] = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-S", __file__, str(pid), str(_started(pid)), os.environ[MARK]],
        env=environment,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin
    return process.stdin


def marked(token: str) -> dict[int, dict[str, str]]:
    """Pid -> environment of all processes that have the token. A zombie has no environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue  # gone, or of another user
            pairs = dict(pair.partition("=")[::2] for pair in text.split("\0"))
            if pairs.get(MARK) == token:
                found[int(entry.name)] = pairs
    return found


def _started(pid: int) -> str:
    """Start of a process in clock ticks since boot. Empty for a zombie and for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return ""
    if fields[0] == "Z":
        return ""
    return fields[19]


def _end(token: str, below: str) -> None:
    """Terminate all of them, then kill them. Unmount their disks, delete folders of clusters."""
    clusters, began_s = set(), time.monotonic()
    while left := marked(token):
        clusters |= {
            Path(pairs["SLURM_CONF"]).parent.parent
            for pairs in left.values()
            if "SLURM_CONF" in pairs
        }
        passed_s = time.monotonic() - began_s
        if any(_name(pid) in INSTALLERS for pid in left) and passed_s < INSTALL_S:
            time.sleep(0.5)
            continue
        for pid in left:
            _kill(pid, signal.SIGTERM if passed_s < GRACE_S else signal.SIGKILL)
        time.sleep(0.3)
    for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
        place = line.split(" ")[1].encode().decode("unicode_escape")
        if below and place.startswith(f"{below}/"):  # a small disk
            subprocess.run(["umount", "--lazy", place], check=False)
    for folder in clusters:
        if (folder / "settings").exists() and (folder / "munge").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(OSError):
        os.kill(pid, number)


def main(pid: int, start: str, token: str) -> None:
    # who ends all that he finds waits for the last
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while _started(pid) == start:
        time.sleep(0.2)
    os.set_blocking(0, False)
    _end(token, os.fsdecode(os.read(0, 4096) or b"") if select.select([0], [], [], 0)[0] else "")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
