"""Who may change what this user executes: pickled checkpoints, code snapshots, payloads. As ssh is with its own files.

On a shared file system whoever can write a file that is unpickled, or replace it in its folder, runs code as its
reader. So such a file is opened only when it and every folder up to the runs' root belong to the reader (folders also
to root) and nobody else may write them. POSIX access lists are seen too: their mask stands in the group's bits.

Where a profile says `group: true`, what belongs to one of the reader's groups is as good as the reader's own.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from furnace_hpc.spec.errors import ConfigError

GROUP_ACCESS = "FURNACE_GROUP_ACCESS"  # 1: the group may read and write the runs, as a profile with `group: true` says


def keep_private(group: bool = False) -> None:
    """From now on this process and its children make folders 0700 and files 0600; with `group` 0770 and 0660."""
    os.umask(0o007 if group else 0o077)
    os.environ.pop(GROUP_ACCESS, None)
    if group:
        os.environ[GROUP_ACCESS] = "1"


def check_trusted(path: Path, root: Path) -> None:
    """Raise ConfigError unless nobody but this user can have written what may execute.

    Args:
        path: a file, or a folder of which every file counts.
        root: the last folder upwards that counts, mostly the runs' root.

    Raises:
        ConfigError: a file belongs to another user, a folder to neither this user nor root, either may be written by
            the group, or by others, or `path` leads out of `root`. With FURNACE_GROUP_ACCESS=1 the group may write, and
            other users own, what belongs to one of this user's groups.
        FileNotFoundError: there is no such path.
    """
    real, top = path.resolve(strict=True), root.resolve(strict=True)
    if not real.is_relative_to(top):
        raise ConfigError(f"{path} leads out of {root}, to {real}: nothing out there is loaded; copy it to its place")
    chains = {folder for end in (path.absolute(), real) for folder in _upwards(end, top)}
    for folder in sorted(chains):
        check_entry(folder)
    if real.is_dir():
        for place, folders, files in os.walk(real):
            for name in (*folders, *files):
                entry = Path(place, name)
                if entry.is_symlink() and not entry.resolve().is_relative_to(top):
                    raise ConfigError(f"{entry} leads out of {root}: nothing out there is loaded; copy it to its place")
                check_entry(entry)


def _upwards(path: Path, top: Path) -> Iterator[Path]:
    """The path and its folders up to `top`, as they are named."""
    for place in (path, *path.parents):
        if place.resolve().is_relative_to(top):
            yield place


def check_entry(path: Path) -> None:
    """As `check_trusted`, of one file or folder alone."""
    facts = path.lstat()
    is_folder, mine = stat.S_ISDIR(facts.st_mode), os.getuid()
    of_group = os.environ.get(GROUP_ACCESS) == "1" and facts.st_gid in (os.getegid(), *os.getgroups())
    if facts.st_uid != mine and not of_group and not (is_folder and facts.st_uid == 0):
        raise ConfigError(
            f"{path} belongs to user {_name(facts.st_uid)}, not to {_name(mine)}: what it holds could run anything as "
            f"you, so it is not loaded; if you trust it, make a copy of your own, or chown {_name(mine)} {path}"
        )
    if stat.S_ISLNK(facts.st_mode):  # it cannot be written, only replaced, and for that its folder counts
        return
    if not facts.st_mode & (stat.S_IWOTH if of_group else stat.S_IWGRP | stat.S_IWOTH):
        return
    if is_folder and facts.st_mode & stat.S_ISVTX:  # as /tmp: others can add to it, and replace nothing of this user's
        return
    who = "all users" if facts.st_mode & stat.S_IWOTH else "its group"
    raise ConfigError(
        f"{path} may be written by {who} (mode {stat.S_IMODE(facts.st_mode):04o}): what it holds could run anything as "
        f"you, so it is not loaded; if nobody has changed it: chmod go-w {path}"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
