"""The network link of this node that collectives should use, and its rate."""

import os
from pathlib import Path
from typing import Any

SYS = Path("/sys/class")
ROUTES = Path("/proc/net/route")


def fastest_link(on_gpu: bool, sys_class: Path = SYS, routes: Path = ROUTES) -> dict[str, Any]:
    """Name and GB/s of the link, 0 if the system does not know its rate.

    NCCL uses InfiniBand or RoCE if there is an active port. Everything else uses an interface of
    IP: that of NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, or that of the default route.
    """
    if on_gpu and "NCCL_IB_DISABLE" not in os.environ:
        ports = [_port(path) for path in sorted(sys_class.glob("infiniband/*/ports/*"))]
        active = [port for port in ports if port["gb_s"]]
        if active:
            return max(active, key=lambda port: float(port["gb_s"]))
    variable = "NCCL_SOCKET_IFNAME" if on_gpu else "GLOO_SOCKET_IFNAME"
    name = os.environ.get(variable, "").split(",")[0].lstrip("=^") or _default_route(routes)
    return {"name": name or "unknown", "gb_s": _interface_gb_s(sys_class / "net" / name)}


def _port(path: Path) -> dict[str, Any]:
    """One port of InfiniBand. Its rate is 0 if it is not active."""
    name = f"{path.parts[-3]} port {path.name}"
    gb_s = 0.0
    if "ACTIVE" in _text(path / "state"):
        words = _text(path / "rate").split()  # 200 Gb/sec (4X HDR)
        gb_s = _number(words[0]) / 8 if words else 0.0
    return {"name": name, "gb_s": gb_s}


def _interface_gb_s(path: Path) -> float:
    return max(0.0, _number(_text(path / "speed"))) / 8000  # in Mb/s; -1 if unknown


def _default_route(routes: Path) -> str:
    """Name of the interface of the default route. Empty if there is none."""
    for line in _text(routes).splitlines()[1:]:
        words = line.split()
        if len(words) > 1 and words[1] == "00000000":
            return words[0]
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # also if an interface does not know its speed
        return ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
