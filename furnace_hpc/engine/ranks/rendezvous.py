"""Pass the address of rank 0's store to all ranks, with few calls of the shared file system.

Rank 0 writes the address to a file, and then listens on a port, the bell. One rank per other node
looks for the file: at first, when the bell rings, and at long intervals. It passes the address to
the ranks of its node through a local socket. This module imports no torch.
"""

import hashlib
import json
import os
import random
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.folder import write_atomically

CALLS_PER_S = 3.0  # of the file system, of all nodes together
SHORTEST_PAUSE_S = 0.25
BELL_PORTS = (20_000, 12_000)  # the first, and their number
BELL_POLL_S, BELL_TIMEOUT_S = 0.5, 1.0
BELL_LOOKS = 5  # a network file system may show the file a little later than the bell
LOCAL_POLL_S = 0.05  # between attempts to reach the node's socket, which is in memory
BACKLOG = 1024
_CREDENTIALS = struct.Struct("3i")  # Linux: pid, uid and gid of the other side


class Address(NamedTuple):
    """Where rank 0 serves the store."""

    host: str
    port: int


class NodeSocket:
    """A socket on which one rank of a node tells the others the address.

    Its name is abstract (Linux), so it is no file, and it disappears with the process.
    """

    def __init__(self, rendezvous: Path) -> None:
        """Listen. Ranks may connect before the address is known.

        Raises:
            OSError: another rank of this node has the name.
        """
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(_name(rendezvous))
            self._listener.listen(BACKLOG)
        except OSError:
            self._listener.close()
            raise

    def serve(self, address: Address) -> None:
        """Send the address to all ranks that connect, in a thread, until `close`."""
        content = json.dumps(address).encode()
        threading.Thread(target=self._serve, args=(content,), name="address", daemon=True).start()

    def _serve(self, content: bytes) -> None:
        with suppress(OSError):  # after `close`
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    if _peer_uid(connection) == os.getuid():
                        connection.sendall(content)

    def close(self) -> None:
        """Stop. Call it when all ranks have met."""
        with suppress(OSError):  # wakes the thread
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def publish(rendezvous: Path, address: Address) -> ExitStack:
    """Publish the address on rank 0, for other nodes and for this one.

    Returns:
        What is open, for the caller to close when all ranks have met.
    """
    write_atomically(rendezvous, json.dumps(address._asdict()))
    is_open = ExitStack()
    with suppress(OSError):  # another process has the name
        node_socket = NodeSocket(rendezvous)
        is_open.callback(node_socket.close)
        node_socket.serve(address)
    with suppress(OSError):  # another process has the port
        # The kernel completes connections, so nothing needs to accept them.
        is_open.enter_context(socket.create_server(("", _bell_port(rendezvous)), backlog=BACKLOG))
    return is_open


def wait_for_address(
    rendezvous: Path, local_rank: int, world_size: int, timeout_s: float
) -> tuple[Address, ExitStack]:
    """Wait for the address on a rank other than 0.

    Returns:
        The address, and what is open, for the caller to close when all ranks have met.

    Raises:
        TimeoutError: rank 0 has not published it in time.
    """
    deadline_s, is_open = time.monotonic() + timeout_s, ExitStack()
    node_socket: NodeSocket | None = None
    if local_rank == 0:
        with suppress(OSError):
            node_socket = NodeSocket(rendezvous)
            is_open.callback(node_socket.close)
    if node_socket:
        address = _wait_for_file(rendezvous, deadline_s, _num_nodes(world_size))
        if address:
            node_socket.serve(address)
    else:
        address = _wait_for_node(rendezvous, deadline_s, world_size)
    if address is None:
        is_open.close()
        raise TimeoutError(
            f"rank 0 did not publish its address in {rendezvous} within {timeout_s:g} s"
        )
    return address, is_open


def _pause_s(num_processes: int) -> float:
    """The pause between looks with which so many processes make CALLS_PER_S calls in total."""
    return max(SHORTEST_PAUSE_S, num_processes / CALLS_PER_S)


def _wait_for_file(rendezvous: Path, deadline_s: float, num_nodes: int) -> Address | None:
    """Look for the file at long intervals, and when the bell rings, until the deadline."""
    generator = random.SystemRandom()  # not the run's own generator
    rings = BELL_LOOKS
    while (address := _look(rendezvous)) is None:
        # It varies, so that nodes do not all look at the same moment.
        look_s = time.monotonic() + _pause_s(num_nodes) * generator.uniform(0.9, 1.1)
        while time.monotonic() < min(look_s, deadline_s):
            time.sleep(min(BELL_POLL_S, max(0.0, look_s - time.monotonic())))
            # Another program may have the port. Then the bell is ignored after some looks.
            if rings and _bell_rings(rendezvous):
                rings -= 1
                break
        if time.monotonic() >= deadline_s:
            return None
    return address


def _bell_rings(rendezvous: Path) -> bool:
    """Whether rank 0 listens, so it has published the address.

    This costs no call of the file system. The address itself comes from the file alone, because
    anybody could listen.
    """
    host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR")  # the batch script's node, which has rank 0
    if not host:
        return False
    try:
        with socket.create_connection((host, _bell_port(rendezvous)), timeout=BELL_TIMEOUT_S):
            return True
    except OSError:
        return False


def _bell_port(rendezvous: Path) -> int:
    """A port below those that Linux gives to outgoing connections, the same on all ranks."""
    return BELL_PORTS[0] + int(_digest(rendezvous)[:8], 16) % BELL_PORTS[1]


def _look(rendezvous: Path) -> Address | None:
    """Read the file if it is there.

    A listing makes a network file system refresh its cache, and is one call.
    """
    try:
        if all(path.name != rendezvous.name for path in rendezvous.parent.iterdir()):
            return None
        return Address(**json.loads(read_regular(rendezvous)))
    except FileNotFoundError:
        return None


def _wait_for_node(rendezvous: Path, deadline_s: float, world_size: int) -> Address | None:
    """Get the address from the rank that serves this node.

    If ranks of a node cannot reach each other, as in containers with their own networks, each of
    them looks at the file too, but rarely.
    """
    pause_s = _pause_s(world_size)
    look_s = time.monotonic() + pause_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        if address := _ask_node(rendezvous, min(left_s, pause_s)):
            return address
        if time.monotonic() >= look_s:
            if address := _look(rendezvous):
                return address
            look_s = time.monotonic() + pause_s
        time.sleep(LOCAL_POLL_S)
    return None


def _ask_node(rendezvous: Path, timeout_s: float) -> Address | None:
    """Ask the node's socket. None if no process listens, or the address does not come in time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, suppress(OSError):
        connection.settimeout(timeout_s)
        connection.connect(_name(rendezvous))
        # The name is free for all: another user's address would connect this rank to his process.
        if _peer_uid(connection) != os.getuid():
            return None
        if content := connection.recv(4096):
            return Address(*json.loads(content))
    return None


def _name(rendezvous: Path) -> str:
    """The abstract name of the socket of this attempt on this node."""
    return f"\0furnace-{_digest(rendezvous)}-{os.environ.get('SLURM_NODEID', '0')}"


def _digest(rendezvous: Path) -> str:
    return hashlib.sha256(os.fsencode(rendezvous.absolute())).hexdigest()[:32]


def _peer_uid(connection: socket.socket) -> int:
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(content)[1])


def _num_nodes(world_size: int) -> int:
    """Nodes of the job step. Without Slurm, as if each rank had a node of its own."""
    for name in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES"):
        if (text := os.environ.get(name, "")).isdigit():
            return int(text)
    return world_size
