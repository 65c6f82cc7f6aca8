"""Decide which addresses to listen on, and which Host headers to answer.

A web page on another site can make its own name point to 127.0.0.1 (DNS rebinding). Its requests
then reach this server with that name in the Host header.
"""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from furnace_hpc.config.errors import ConfigError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = (
    "all who can reach this machine can use the model: there is no password, and nothing is "
    "encrypted"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, port: int, allow_network: bool) -> None:
    """Raise ConfigError if other machines could reach the server without --allow-network."""
    if is_loopback(host) or allow_network:
        return
    raise ConfigError(
        f"--host {host} opens the model to the network: {OPEN}. Leave --host out and use "
        f"`ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}` from the other machine, or add "
        "--allow-network"
    )


def bound_socket(host: str, port: int) -> socket.socket:
    """Open a socket at an address.

    Raises:
        ConfigError: the port is in use, or this machine does not have the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--host {host} --port {port} cannot be opened ({reason}). Give another --port, or "
            "--port 0 for a free one"
        ) from None
    return found


@dataclass(frozen=True)
class Hosts:
    """The names under which this server answers."""

    names: frozenset[str]
    any_address: bool
    """Whether an address (not a name) is always right. No other site can own an address."""

    @classmethod
    def of(cls, host: str) -> "Hosts":
        """Return the names of a server that listens on `host`."""
        if is_loopback(host):
            return cls(LOOPBACK | {host}, False)
        own = {host, socket.gethostname(), socket.getfqdn()}
        return cls(LOOPBACK | {name.lower() for name in own}, True)

    def knows(self, header: str) -> bool:
        """Whether a Host header names this server. Its port may be any, as through a tunnel."""
        try:
            name = urlsplit(f"//{header}").hostname
        except ValueError:
            return False
        if not name or set(header) & set("/?#@\\"):
            return False
        return name in self.names or (self.any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of this server sent a request. `host` is its Host header."""
    return urlsplit(origin).netloc.lower() == host.lower()
