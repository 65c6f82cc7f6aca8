"""Find the network interface that gloo needs between nodes."""

import fcntl
import os
import socket
import struct

VARIABLE = "GLOO_SOCKET_IFNAME"  # gloo reads it
_ELSEWHERE = ("10.255.255.255", 1)  # nothing is sent there
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def set_gloo_interface() -> None:
    """Name the interface to other nodes, if gloo would choose the loopback interface.

    Gloo binds to the address of the host's own name. Some systems give that name a loopback address
    in /etc/hosts, which other nodes cannot reach. A variable that is set already stays.
    """
    several_nodes = int(os.environ.get("SLURM_NNODES", "1")) > 1
    if VARIABLE in os.environ or not several_nodes or not _own_name_is_loopback():
        return
    address = _routed_address()
    for _, name in socket.if_nameindex():
        if address and _address_of(name) == address:
            os.environ[VARIABLE] = name


def _own_name_is_loopback() -> bool:
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:  # gloo then uses the loopback interface too
        return True


def _routed_address() -> str:
    """This host's address for packets to other networks. Empty if there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _address_of(interface: str) -> str:
    """The IPv4 address of an interface. Empty if it has none."""
    request = struct.pack("256s", interface[:15].encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
