"""A real Slurm on this machine, made by slurm/devcluster. Only conftest.py imports its fixtures:

from slurm_cluster import cluster, quiet  # noqa: F401
"""

import getpass
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

DEVCLUSTER = Path(__file__).parents[2] / "slurm" / "devcluster"
INSTALL_S = 240  # apt-get, the first time
FOREIGN = (
    "SLURM",
    "SBATCH",
    "SRUN",
    "SALLOC",
    "SQUEUE",
    "SINFO",
    "SACCT",
    "SCANCEL",
    "PMI",
    "SUBMITIT",
    "FURNACE",
)


class CannotStart(Exception):
    """This machine can have no cluster; the text says why."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up; `environment` is what a user of it has."""

    folder: Path
    options: tuple[str, ...]
    environment: dict[str, str]

    def run(
        self, *command: str | Path, cwd: Path | None = None, timeout_s: float = 60, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """What a user types on the login node."""
        return subprocess.run(
            command,
            cwd=cwd,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self) -> None:
        """Start again whatever a test has ended."""
        self._devcluster("up", *self.options)

    def kill_node(self, name: str) -> None:
        """A power cut. Slurm detects it after 30 s, or at start_node, and requeues jobs."""
        self._devcluster("kill-node", name)

    def start_node(self, name: str) -> None:
        """Returns when the node answers."""
        self._devcluster("start-node", name)

    def processes(self, name: str) -> list[psutil.Process]:
        """All processes of a node: its slurmd, batch scripts, ranks."""
        pid = int((self.folder / "run" / f"slurmd.{name}.pid").read_text().split()[0])
        return psutil.Process(pid).children(recursive=True)

    def cut_node(self, name: str, other: str = "all") -> None:
        """Lose all packets between a node and others. It needs `--net separate`."""
        self._devcluster("cut-node", name, "--from", other)

    def heal_node(self, name: str) -> None:
        """End all cuts and delays of a node."""
        self._devcluster("heal-node", name)

    def slow_node(self, name: str, delay: str, loss: str) -> bool:
        """Delay and lose a node's packets. False: this kernel cannot."""
        words = ("slow-node", name, "--delay", delay, "--loss", loss, "--dir", str(self.folder))
        done = devcluster(*words)
        assert done.returncode == 0 or "this kernel cannot" in done.stderr, done.stderr
        return done.returncode == 0

    def stop_controller(self) -> None:
        """Slurm's commands fail from now on. Running jobs continue."""
        self._devcluster("stop-controller")

    def impatient(self) -> str:
        """A SLURM_CONF with which commands wait two seconds for the controller, not ten."""
        path = self.folder / "conf" / "impatient.conf"
        path.write_text((self.folder / "conf" / "slurm.conf").read_text() + "MessageTimeout=2\n")
        return str(path)

    def restart_controller(self) -> None:
        """Stop the controller if it runs, and start it. It keeps all jobs."""
        self._devcluster("restart-controller")

    def down(self) -> None:
        """End every process, and delete the folder."""
        self._devcluster("down", "--wipe")

    def quieten(self) -> None:
        """Everything runs, no job is left, every node takes jobs."""
        self.up()
        self.run("scancel", "--user", getpass.getuser())
        wait_until(lambda: self._says("squeue", "--noheader") == "", 60, "an empty queue")
        if drained := self._says("sinfo", "--noheader", "--states=drain", "--format=%N"):
            self._says("scontrol", "update", f"NodeName={drained}", "State=RESUME")

    def _says(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _devcluster(self, *arguments: str) -> None:
        done = devcluster(*arguments, "--dir", str(self.folder))
        assert done.returncode == 0, done.stdout + done.stderr


def devcluster(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """`slurm/devcluster ...`."""
    return subprocess.run(
        [DEVCLUSTER, *arguments],
        env=_clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def start_cluster(folder: Path, *options: str) -> Cluster:
    """Start a cluster in `folder`, on free ports. Several can run at a time.

    Raises:
        CannotStart: this machine can have none, for example because nothing can be installed.
    """
    if not sys.platform.startswith("linux"):
        raise CannotStart("Slurm needs Linux")
    options = (*options, "--no-link", "--port", str(_free_port_base()))
    done = devcluster("up", *options, "--dir", str(folder), timeout_s=INSTALL_S)
    if done.returncode == 0:
        return Cluster(
            folder,
            options,
            _clean_environment() | {"SLURM_CONF": str(folder / "conf" / "slurm.conf")},
        )
    devcluster("down", "--wipe", "--dir", str(folder))
    if done.returncode == 1:
        raise CannotStart(done.stderr.strip().splitlines()[-1])
    raise AssertionError(done.stdout + done.stderr)


def wait_until(predicate: Callable[[], object], timeout_s: float, what: str) -> None:
    """Return when `predicate()` is true. Fail if it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes of 64 CPUs and 4 GPUs, with accounting, up until all tests are done."""
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    try:
        cluster = start_cluster(folder)
    except CannotStart as reason:
        pytest.skip(f"no Slurm here: {reason}")
    yield cluster
    cluster.down()


@pytest.fixture
def quiet(cluster: Cluster) -> Iterator[Cluster]:
    """The session's cluster. Jobs that the test leaves on it are cancelled."""
    yield cluster
    cluster.quieten()


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def _free_port_base() -> int:
    """The first of 500 ports below the kernel's ephemeral ports. Those of the daemons are free."""
    bases = list(range(20000, 32000, 500))
    random.shuffle(bases)
    return next(
        base
        for base in bases
        if all(_is_free(base + offset) for offset in (0, 1, 2, *range(10, 20)))
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
