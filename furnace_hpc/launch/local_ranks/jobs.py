"""Start runs on this machine: forked from a rank server, or as fresh processes.

A run has a controller, which is a child of this process, and the controller's children are its
ranks. Fresh processes are used for runs on GPUs, for snapshots without a server, if
FURNACE_FRESH_RANKS=1, and if a server ends or refuses a run.
"""

import ctypes
import json
import os
import shlex
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.launch.batch_script import rank_command
from furnace_hpc.launch.local_ranks import controller
from furnace_hpc.slurm.environment import absolute_folders, clean_environment

FRESH = "FURNACE_FRESH_RANKS"
SERVER = Path("furnace_hpc") / "launch" / "local_ranks" / "server.py"
ROOT = Path(__file__).resolve().parents[3]
# The isolated Python ignores PYTHONPATH, which names the run's snapshot: the controller is of this
# code. ROOT comes last, so that nothing beside this package replaces the standard library.
RUN_MODULE = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphans below this process become its children
MAX_MESSAGE = 4096
MAX_SERVERS = 2  # each has about 400 MB
# Blocked in children that start here. The terminal sends its signals to the whole process group.
# The controller waits for TERM.
BLOCKED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)

Variables = dict[str, str]


@dataclass(frozen=True)
class Task:
    """What one run executes."""

    run_id: str
    code: Path
    num_ranks: int
    shared: Variables
    """Variables that other runs have too. Libraries read them when they are imported."""
    own: Variables
    on_gpus: bool

    @property
    def key(self) -> tuple[str, ...]:
        """What the runs of one server have in common."""
        return (str(self.code), *(f"{name}={value}" for name, value in sorted(self.shared.items())))


@dataclass
class Job:
    """The processes of one run."""

    task: Task
    number: int
    pid: int | None = None  # of the controller; None until the server has forked it
    exit_code: int | None = None  # None while it runs

    def poll(self) -> None:
        """Note the end of the controller."""
        if self.pid is None or self.exit_code is not None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self.exit_code = code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Send TERM to the controller, which passes it on to every rank."""
        if self.pid is not None and self.exit_code is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the controller, its ranks and their children."""
        if self.pid is None or self.exit_code is not None:
            return
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            for one in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def ranks_of(controller_pid: int) -> list[psutil.Process]:
    """Return the living ranks of a run in order."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(controller_pid).children()
        living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return sorted(living, key=lambda child: (child.create_time(), child.pid))
    return []


@dataclass
class _Server:
    """A rank server, and the jobs that it has not forked yet."""

    pid: int
    connection: socket.socket
    waiting: dict[int, Job] = field(default_factory=dict)
    unsent: deque[bytes] = field(default_factory=deque)  # requests for which the socket was full
    ended: bool = False
    has_forked: bool = False

    def request(self, job: Job, submission: Path) -> None:
        """Ask for a fork. If the server has ended, `receive` finds that out."""
        self.waiting[job.number] = job
        content = {
            "number": job.number,
            "run_id": job.task.run_id,
            "world_size": job.task.num_ranks,
            "submission": str(submission),
            "environment": job.task.own,
        }
        self.unsent.append(json.dumps(content).encode())
        self._send()

    def _send(self) -> None:
        """Send requests until the socket is full. It holds some 160 while the server imports."""
        with suppress(OSError):  # full, or the server has ended, which `receive` finds out
            while self.unsent:
                self.connection.send(self.unsent[0])
                self.unsent.popleft()

    def receive(self) -> list[tuple[Job, str]]:
        """Note the controllers that were forked. Return the jobs that were not, and why."""
        refused: list[tuple[Job, str]] = []
        self._send()
        while not self.ended:
            try:
                message = self.connection.recv(MAX_MESSAGE)
            except BlockingIOError:
                break
            except OSError:
                message = b""
            if not message:
                self.stop()
                refused += [
                    (job, "the rank server has ended (see its log in the submission)")
                    for job in self.waiting.values()
                ]
                self.waiting.clear()
                break
            answer = json.loads(message)
            job = self.waiting.pop(answer["number"])
            job.pid = answer.get("pid")
            if job.pid is None:
                refused.append((job, answer["problem"]))
            else:
                self.has_forked = True
        return refused

    def stop(self) -> None:
        """Kill the server. Runs that it has forked continue."""
        if not self.ended:
            self.ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.connection.close()

    def abandon(self) -> None:
        """Kill the server. A job that it has not forked counts as killed."""
        os.kill(self.pid, signal.SIGKILL)
        self.unsent.clear()
        self.connection.setblocking(True)  # a controller may be about to answer
        for job, _ in self.receive():
            job.exit_code = 128 + signal.SIGKILL


class RankStarter:
    """A context that starts jobs. Its end stops the servers and leaves the jobs alone."""

    def __init__(self, profile: ClusterProfile, submission: Path) -> None:
        self._profile, self._submission = profile, submission
        self._servers: dict[tuple[str, ...], _Server] = {}
        self._fresh = os.environ.get(FRESH, "") not in ("", "0")
        self._number = 0

    def __enter__(self) -> "RankStarter":
        # if it were ignored, as some parents set it, children could not be waited for
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if _adopt_orphans(True) != 0:
            self._fresh = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers.values():
            server.stop()
        _adopt_orphans(False)

    def start(self, task: Task) -> Job:
        """Start the ranks of one run. The caller has checked that its code is trusted."""
        self._number += 1
        job = Job(task, self._number)
        if self._fresh or task.on_gpus or not (task.code / SERVER).exists() or self._failed(task):
            job.pid = self._start_fresh(task)
        else:
            self._server_of(task).request(job, self._submission)
        return job

    def poll(self) -> list[str]:
        """Take the answers of the servers. Start as fresh processes what they refused.

        Returns:
            A sentence for each job that was refused.
        """
        refused = [one for server in self._servers.values() for one in server.receive()]
        for job, _ in refused:
            job.pid = self._start_fresh(job.task)
        return [
            f"{job.task.run_id} starts as a fresh process, because {why}" for job, why in refused
        ]

    def kill(self, job: Job) -> None:
        """Kill a job, also one that is not forked yet."""
        for server in self._servers.values():
            if job.number in server.waiting:
                server.abandon()
        job.kill()

    def _failed(self, task: Task) -> bool:
        """Whether the server of this code and environment has ended before its first fork."""
        server = self._servers.get(task.key)
        return server is not None and server.ended and not server.has_forked

    def _server_of(self, task: Task) -> _Server:
        """Return the server of this code and environment. Start it if there is none."""
        server = self._servers.pop(task.key, None)
        if server is None or server.ended:
            idle = [other for other in self._servers.items() if not other[1].waiting]
            for other, oldest in idle[: max(0, len(self._servers) + 1 - MAX_SERVERS)]:
                oldest.stop()
                del self._servers[other]
            server = self._start_server(task)
        self._servers[task.key] = server  # the last one is the newest
        return server

    def _start_server(self, task: Task) -> _Server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        log = self._submission / f"rank-server-{self._number}.log"
        command = self._python(task.code)
        command += ["-u", "-m", "furnace_hpc.launch.local_ranks.server", str(os.getpid())]
        with theirs, log.open("ab") as output:
            pid = _spawn(command, _environment(task), theirs.fileno(), output.fileno())
        return _Server(pid, ours)

    def _start_fresh(self, task: Task) -> int:
        ranks = [*self._python(task.code), "-u", "-m", "furnace_hpc.launch.rank_main"]
        script = [sys.executable, "-I", "-S", "-c", RUN_MODULE, str(ROOT), controller.__name__]
        arguments = [str(os.getpid()), str(task.num_ranks), str(self._submission)]
        command = [*script, *arguments, *ranks, str(self._submission)]
        return _spawn(command, _environment(task) | task.own)

    def _python(self, code: Path) -> list[str]:
        return shlex.split(rank_command(self._profile, code))


def rank_environment(code: Path, num_threads: int) -> Variables:
    """Return the variables that all runs of this code have in common."""
    import_from = [str(code), *absolute_folders(os.environ.get("PYTHONPATH", ""))]
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "FURNACE_CODE": str(code),
        "PYTHONPATH": os.pathsep.join(import_from),
        "PYTHONSAFEPATH": "1",
        "SUBMITIT_EXECUTOR": "local",  # submitit's names: code of older snapshots reads them
    }


def _environment(task: Task) -> Variables:
    return clean_environment(os.environ) | task.shared


def _spawn(
    command: list[str], environment: Variables, stdin: int | None = None, output: int | None = None
) -> int:
    """Start a process with the terminal's signals and TERM blocked. Return its id."""
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    if stdin is None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    else:
        actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
    if output is not None:
        actions += [(os.POSIX_SPAWN_DUP2, output, descriptor) for descriptor in (1, 2)]
    return os.posix_spawnp(
        command[0],
        command,
        environment,
        file_actions=actions,
        setsigmask=BLOCKED,
        setsigdef=[signal.SIGCHLD],
    )


def _adopt_orphans(on: bool) -> int:
    """Let this process be the parent of orphans below it, or not. Return 0 if that is possible."""
    result: int = ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
    return result
