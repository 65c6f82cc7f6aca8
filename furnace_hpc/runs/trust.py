"""Refuse to execute or unpickle what other users can have written, as ssh does with its files.

Who can write a file that is unpickled, or replace it or a folder above it, runs code as its reader.
`host/access.py` has the rule. If a profile says `group: true`, the user's groups are trusted.
"""

import os
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.access import GROUP_ACCESS as GROUP_ACCESS
from furnace_hpc.host.access import Fault, find_faults


class Untrusted(ConfigError):
    """Other users could change it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.problem}. {fault.fix}")


def trust_group(group: bool) -> None:
    """Set whether the checks of this process and its children trust the user's groups."""
    os.environ.pop(GROUP_ACCESS, None)
    if group:
        os.environ[GROUP_ACCESS] = "1"


def keep_private(group: bool = False) -> None:
    """Let this process and its children create folders as 0700 and files as 0600.

    With `group` they are 0770 and 0660, and the checks trust the user's groups.
    """
    trust_group(group)
    os.umask(0o007 if group else 0o077)


def check_trusted(path: Path, root: Path) -> None:
    """Raise an error unless only this user (and root) can have written `path`.

    Args:
        path: a file, or a folder with everything in it. All folders from / to it are checked too.
        root: the folder that must contain `path`, usually the runs' root.

    Raises:
        Untrusted: it belongs to another user, its group or others may write it, or it leads out of
            `root`. With FURNACE_GROUP_ACCESS=1 the user's groups may write it, and other users of
            them may own it.
        FileNotFoundError: the path does not exist.
    """
    for fault in find_faults(str(path), str(root)):
        raise Untrusted(fault)


def check_place(path: Path, root: Path) -> None:
    """Raise Untrusted if other users could replace what is written to this path.

    It checks as `check_trusted` does, without the folder's content. The folder need not exist yet.
    """
    for fault in find_faults(str(path), str(root), with_content=False):
        raise Untrusted(fault)
