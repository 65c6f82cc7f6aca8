"""Identify the process that holds an attempt, and check whether it still runs.

Standard library only, syntax of Python 3.6.
"""

import os
import socket
from typing import Any, Dict, Optional

Record = Dict[str, Any]


def holder(pid: Optional[int] = None) -> Record:
    """The record of a process as a holder. It identifies the process on this host, also later.

    Args:
        pid: the process. None: this one.
    """
    pid = pid or os.getpid()
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": pid,
        "pid_start": _pid_start(pid),
    }


def is_alive(who: Optional[Record]) -> Optional[bool]:
    """Whether the holder's process lives. None if it ran on another host, or is unknown."""
    if not who or who.get("host") != socket.gethostname():
        return None
    if who.get("boot_id") != _boot_id():
        return False
    start = _pid_start(who["pid"])
    return start is not None and start == who["pid_start"]


def describe(who: Optional[Record]) -> str:
    """The holder's process and host, for messages."""
    if not who:
        return "an unknown process"
    return f"process {who.get('pid')} on {who.get('host')}"


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _pid_start(pid: int) -> Optional[int]:
    """Start time of a process in clock ticks since boot. None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    if fields[0] in "ZX":
        return None
    return int(fields[19])
