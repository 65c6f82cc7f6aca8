"""Who holds a lease, and whether that very process still lives.

Standard library only, syntax of Python 3.6: the host side uses it.
"""

import os
import socket
from typing import Any, Dict, Optional

Record = Dict[str, Any]


def holder(pid: Optional[int] = None) -> Record:
    """Who holds a lease: enough to tell later, on this host, whether that very process still lives."""
    pid = pid or os.getpid()
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": pid,
        "pid_start": _pid_start(pid),
    }


def is_alive(who: Optional[Record]) -> Optional[bool]:
    """True or False for a process of this boot of this host; None when it cannot be known from here."""
    if not who or who.get("host") != socket.gethostname():
        return None
    if who.get("boot_id") != _boot_id():
        return False
    start = _pid_start(who["pid"])
    return start is not None and start == who["pid_start"]


def describe(who: Optional[Record]) -> str:
    """A holder in words."""
    return "process %s on %s" % (who.get("pid"), who.get("host")) if who else "an unknown process"


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _pid_start(pid: int) -> Optional[int]:
    """Start time of a process in clock ticks since boot; None when it is gone (a zombie counts as gone)."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
