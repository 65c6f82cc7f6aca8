"""What may be executed or unpickled: what nobody else can have written. As ssh is with its own files.

On a shared file system whoever can write a file that is unpickled, or replace it or any folder above it, runs code as
its reader. `access.py` has the rule; where a profile says `group: true`, it trusts what belongs to the user's groups.
"""

import os
from pathlib import Path

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.access import GROUP_ACCESS as GROUP_ACCESS
from furnace_hpc.host.access import Fault, find_faults


class Untrusted(ConfigError):
    """Others could change it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.problem}. {fault.fix}")


def trust_group(group: bool) -> None:
    """From now on the checks of this process and its children trust the user's groups, or do not."""
    os.environ.pop(GROUP_ACCESS, None)
    if group:
        os.environ[GROUP_ACCESS] = "1"


def keep_private(group: bool = False) -> None:
    """From now on this process and its children make folders 0700 and files 0600; with `group` 0770 and 0660."""
    trust_group(group)
    os.umask(0o007 if group else 0o077)


def check_trusted(path: Path, root: Path) -> None:
    """Raise unless nobody but this user (and root) can have written what may execute.

    Args:
        path: a file, or a folder of which every file counts. All folders above it count too, up to /.
        root: what it must lie in, mostly the runs' root.

    Raises:
        Untrusted: it belongs to another user, or may be written by the group or by others; or it leads out of `root`.
            With FURNACE_GROUP_ACCESS=1 the group may write, and other users own, what is of one of the user's groups.
        FileNotFoundError: there is no such path.
    """
    for fault in find_faults(str(path), str(root)):
        raise Untrusted(fault)


def check_place(path: Path, root: Path) -> None:
    """Raise Untrusted where others could put something in the place of what is, or will be, written to this path.

    As `check_trusted`, without what lies in the folder, which need not be there yet.
    """
    for fault in find_faults(str(path), str(root), with_content=False):
        raise Untrusted(fault)
