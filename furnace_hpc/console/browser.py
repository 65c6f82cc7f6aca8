"""Open a file in the user's browser, or explain how to see it from another machine."""

import getpass
import os
import shlex
import socket
import sys
import webbrowser
from pathlib import Path


def can_open() -> bool:
    """Whether a browser can appear on the user's screen.

    $BROWSER counts, because editors set it to open files on the other side of ssh.
    """
    if os.environ.get("BROWSER"):
        return True
    if os.environ.get("SSH_CONNECTION"):
        return False
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return has_display or sys.platform == "darwin"


def open_file(path: Path) -> bool:
    """Open a file in the browser. Return whether a browser was found."""
    try:
        return webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        return False


def copy_command(path: Path, name: str) -> str:
    """Return the command that copies a file of this machine to the user's own.

    Args:
        path: the file.
        name: its name there.
    """
    source = f"{_user()}@{socket.gethostname()}:{path.resolve()}"
    return f"scp {shlex.quote(source)} {shlex.quote(name)}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return "USER"
