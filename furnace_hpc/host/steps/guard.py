"""End an srun that waits for ranks that have ended, or whose attempt was replaced.

srun outlives its ranks if nodes cannot reach each other but reach the controller. A node sends the
end of its ranks to srun once. If this message is lost, srun waits until the job's time limit, and
all nodes of the job wait with it.

srun outlives its attempt if its node was cut off. Slurm starts the job again on other nodes, with
the same job and step id. When the old srun ends, it ends the step of this id: its successor.

Standard library only, syntax of Python 3.6.
"""

import os
import signal
import time
from typing import Dict, List, NamedTuple, Optional

from furnace_hpc.host import lifecycle

LIVING = ("entered", "stopping")  # verdicts of ranks that have not ended
LOOK_S = 10.0  # between two looks for a successor, which cost one call of the file system
VERDICTS_S = 60.0  # between two looks at the verdicts, which cost a call per node
# from the first rank's end: srun itself takes --wait (60 s) and Slurm's KillWait (30 s)
OUTLIVES_S = 180.0


class _Process(NamedTuple):
    """A process of this host."""

    pid: int
    parent: int
    name: str


class Guard:
    """Decides when the srun of one attempt must end."""

    def __init__(self, run_dir: str, number: int, outlives_s: float = OUTLIVES_S) -> None:
        self._run_dir, self._number, self._outlives_s = run_dir, number, outlives_s
        self._seen_s: Optional[float] = None
        self._looked_s = float("-inf")

    def reason(self, now_s: float, unix_s: float) -> str:
        """Why srun must end now. Empty if it may continue.

        The time since the first rank's end is by the clock of the rank's node, which may differ. So
        an end must also be known here for the time between two looks.

        Args:
            now_s: a monotonic clock of this host.
            unix_s: this host's time.
        """
        if self.is_replaced():
            return "a newer attempt has replaced attempt %d" % self._number
        if now_s - self._looked_s < VERDICTS_S:
            return ""
        self._looked_s = now_s
        verdicts = lifecycle.read_verdicts(self._run_dir, self._number)
        ended = [v for v in verdicts if v["verdict"] not in LIVING]
        if not ended:
            return ""
        first = min(ended, key=lambda v: float(v.get("unix_s", 0)))
        if self._seen_s is None:
            self._seen_s = now_s
            return ""
        age_s = unix_s - float(first.get("unix_s", 0))
        if age_s <= self._outlives_s:
            return ""
        return "rank {} ended {:.0f} s ago ({}), and srun still waits".format(
            first["rank"], age_s, first["verdict"]
        )

    def is_replaced(self) -> bool:
        """Whether a newer attempt has begun: Slurm restarted the job, or a person the run."""
        newer = os.path.join(self._run_dir, "attempts", f"{self._number + 1}.json")
        return os.path.exists(newer)


def watch(run_dir: str, number: int, pid: int) -> None:
    """Watch the srun of an attempt until it has ended, and end it if it must.

    Args:
        run_dir: the run folder.
        number: the attempt.
        pid: the process of srun, or of the shell that runs it.
    """
    for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):  # they are for the ranks
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    watched, this_guard = lifecycle.holder(pid), Guard(run_dir, number)
    while lifecycle.is_alive(watched):
        reason = this_guard.reason(time.monotonic(), time.time())
        if reason:
            print(f"batch.py: srun is ended: {reason}", flush=True)
            end_srun(pid, keep_helper=not this_guard.is_replaced())
            return
        time.sleep(LOOK_S)


def end_srun(pid: int, keep_helper: bool) -> None:
    """Kill srun, which is the process `pid` or a descendant of it.

    srun has a helper, a copy of its process. When srun dies, the helper asks the controller to end
    the step. That is wanted, except if the step id belongs to another attempt by now.
    """
    sruns = find_sruns(pid)
    helpers = [process for process in sruns if _is_copy(process, sruns)]
    if not keep_helper:  # first, so that it does not see the end of srun
        for process in helpers:
            _kill(process.pid)
    for process in sruns:
        if process not in helpers:
            _kill(process.pid)


def find_sruns(pid: int) -> List[_Process]:
    """The processes named srun among `pid` and its descendants, parents first."""
    children: Dict[int, List[_Process]] = {}
    found: List[_Process] = []
    waiting: List[_Process] = []
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
        if process.pid == pid:
            waiting.append(process)
    while waiting:
        process = waiting.pop(0)
        if process.name == "srun":
            found.append(process)
        waiting += children.get(process.pid, [])
    return found


def _is_copy(process: _Process, sruns: List[_Process]) -> bool:
    """Whether its parent is an srun of the same program. A wrapper named srun has another one."""
    if process.parent not in [other.pid for other in sruns]:
        return False
    try:
        program = os.readlink(f"/proc/{process.pid}/exe")
        return program == os.readlink(f"/proc/{process.parent}/exe")
    except OSError:
        return False


def _processes() -> List[_Process]:
    """All processes of this host that can be seen."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", errors="replace") as file:
                head, _, rest = file.read().rpartition(")")
        except OSError:  # it has ended
            continue
        found.append(_Process(int(name), int(rest.split()[1]), head.partition("(")[2]))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
