"""Who else can change what a path leads to: the one rule for all that is executed or unpickled.

    python3 -I -S access.py ROOT PATH ...      prints what is wrong, and exits with 1

Standard library only, syntax of Python 3.6: batch scripts hold this text and run it before any code of a shared disk.

The way is checked from / on. Nobody else can change an entry of a folder that has passed, so what is found below it
stays what it is: nothing can be put in its place between the check and the use.
"""

import errno
import grp
import os
import pwd
import shlex
import stat
import struct
import sys
from typing import Iterator, List, NamedTuple, Tuple

# 1: the group may read and write the runs, as a profile with `group: true` says
GROUP_ACCESS = "FURNACE_GROUP_ACCESS"
IF_UNCHANGED = "If nobody has changed it: "
MAX_LINKS = 40  # as the kernel has it
# Linux: uapi/linux/posix_acl*.h
ACCESS_LIST, NAMED_USER, NAMED_GROUP, WRITE = "system.posix_acl_access", 2, 8, 2


class Fault(NamedTuple):
    """A file, folder or link that others could change: how, and what to do."""

    place: str
    problem: str
    fix: str


def find_faults(path: str, root: str, with_content: bool = True) -> Iterator[Fault]:
    """All that others than this user and root could change on the way to `path`; none: what it leads to is safe.

    With FURNACE_GROUP_ACCESS=1 what belongs to one of the user's groups is as good as the user's own.

    Args:
        path: a file or a folder.
        root: `path` must lie in it. Sticky folders are safe down to it, as /tmp is: others can add to them, and replace
            nothing. Below it others may not even add.
        with_content: of a folder all that lies in it counts too. Else it need not be there yet.

    Raises:
        OSError: it is not there, or may not be looked at.
    """
    top, links, seen = os.path.realpath(root), [path], set()
    while links:
        here = links.pop()
        for entry, facts in _way(here, with_content):
            yield from _faults_of(entry, facts, here, top)
        real = os.path.realpath(here)  # it stays this where all of the way has passed
        if not _is_in(real, top):
            yield Fault(
                here, "%s leads out of %s, to %s" % (here, root, real), "Copy it to its place"
            )
        elif with_content and real not in seen and os.path.isdir(real):
            seen.add(real)
            yield from _faults_of(real, os.lstat(real), here)
            yield from _faults_in(real, links)


def _way(path: str, must_exist: bool) -> Iterator[Tuple[str, os.stat_result]]:
    """Every folder and link that the kernel passes on the way to `path`, from / on, as it is at this moment."""
    place, links = "/", 0
    yield place, os.lstat(place)
    todo = os.path.join(os.getcwd(), path).split("/")[::-1]
    while todo:
        name = todo.pop()
        if name in ("", ".", ".."):
            place = os.path.dirname(place) if name == ".." else place
            continue
        entry = os.path.join(place, name)
        if not must_exist and not os.path.lexists(entry):
            return
        facts = os.lstat(entry)
        yield entry, facts
        if not stat.S_ISLNK(facts.st_mode):
            place = entry
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(entry)
        place = "/" if target.startswith("/") else place
        todo += target.split("/")[::-1]


def _faults_in(folder: str, links: List[str]) -> Iterator[Fault]:
    """Faults of all below a folder; links, which lead elsewhere, are added to `links`."""
    for name in sorted(os.listdir(folder)):
        entry = os.path.join(folder, name)
        facts = os.lstat(entry)
        yield from _faults_of(entry, facts, entry)
        if stat.S_ISDIR(facts.st_mode):
            yield from _faults_in(entry, links)
        elif stat.S_ISLNK(facts.st_mode):
            links.append(entry)


def _is_in(entry: str, folder: str) -> bool:
    return entry == folder or entry.startswith(folder.rstrip("/") + "/")


def _faults_of(entry: str, facts: os.stat_result, path: str, top: str = "") -> Iterator[Fault]:
    """How others could change this one entry, which is `path` or on the way to it. Without `top` it is below that."""
    groups = [os.getegid()] + os.getgroups()
    of_group = os.environ.get(GROUP_ACCESS) == "1" and facts.st_gid in groups
    is_link, is_folder = stat.S_ISLNK(facts.st_mode), stat.S_ISDIR(facts.st_mode)
    is_above = bool(top) and not _is_in(entry, top)
    trust = _group_of_profile(facts.st_gid) if facts.st_gid in groups and not of_group else []
    if (
        facts.st_uid != os.getuid()
        and not of_group
        and not ((is_folder or is_link) and facts.st_uid in _roots())
    ):
        yield _owned(entry, facts, path, trust)
    elif is_link or (is_folder and facts.st_mode & stat.S_ISVTX and (is_above or entry == top)):
        return  # a link cannot be written, only replaced, and for that its folder counts
    elif facts.st_mode & stat.S_IWOTH:
        yield _written(entry, facts, path if is_above else "", "all users", [])
    elif facts.st_mode & stat.S_IWGRP and not of_group and not _is_own_group(facts.st_gid):
        yield _written(entry, facts, path if is_above else "", "its group", trust)
    elif facts.st_mode & stat.S_IWGRP and lets_strangers_write(_access_list(entry), groups):
        found = (
            "%s may be written by users or groups of its access list that are none of yours" % entry
        )
        yield Fault(entry, found, "Take them from the list: setfacl -b %s" % shlex.quote(entry))


def _owned(entry: str, facts: os.stat_result, path: str, trust: List[str]) -> Fault:
    """What to tell of an entry of somebody else."""
    me, mode = _user(os.getuid()), stat.S_IMODE(facts.st_mode)
    found = "%s (mode %04o) belongs to user %s, not to %s" % (entry, mode, _user(facts.st_uid), me)
    if entry == path:
        fix = "If you trust it, make a copy of your own, or: chown %s %s" % (me, shlex.quote(entry))
        return Fault(entry, "%s: what it holds could run anything as you" % found, fix)
    found = "%s: its owner could put anything in the place of %s" % (found, path)
    return Fault(entry, found, _any_of(["choose another place (--runs-root)"] + trust))


def _written(entry: str, facts: os.stat_result, path: str, who: str, ways: List[str]) -> Fault:
    """What to tell of an entry that others may write; `path` is what lies below it, empty for one that is loaded."""
    word, found = (
        shlex.quote(entry),
        "%s may be written by %s (mode %04o)" % (entry, who, stat.S_IMODE(facts.st_mode)),
    )
    if not path:
        found += ": what it holds could run anything as you"
        if os.getuid() not in (0, facts.st_uid) or facts.st_mode & stat.S_ISVTX:
            return Fault(entry, found, "Move what is loaded to a folder that only you can write")
        return Fault(entry, found, "%schmod go-w %s" % (IF_UNCHANGED, word))
    found += " and is not sticky: they could put anything in the place of %s" % path
    ways = ["choose another place (--runs-root)"] + ways
    if os.getuid() in (0, facts.st_uid):
        ways += ["let only owners rename: chmod +t %s" % word, "chmod go-w %s" % word]
    else:
        ways += ["ask user %s for: chmod +t %s" % (_user(facts.st_uid), word)]
    return Fault(entry, found, _any_of(ways))


def _any_of(ways: List[str]) -> str:
    words = ", or ".join(ways)
    return words[0].upper() + words[1:]


def _group_of_profile(gid: int) -> List[str]:
    try:
        name = grp.getgrgid(gid).gr_name
    except KeyError:
        name = str(gid)
    return ["trust all of group %s (group: true in the cluster profile)" % name]


def _is_own_group(gid: int) -> bool:
    """Whether it is the user's private group: of the user's own name, primary, and without other members.

    Many systems give each user such a group, and a umask of 002 with it. Root's group is not one.
    """
    try:
        me, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (
        me.pw_uid != 0
        and (me.pw_gid, me.pw_name) == (gid, group.gr_name)
        and set(group.gr_mem) <= {me.pw_name}
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _roots() -> Tuple[int, ...]:
    """Owners that are root. In a user namespace without root (a rootless container) all unknown owners are one id."""
    try:
        with open("/proc/self/uid_map") as file:
            known = [int(line.split()[1]) for line in file]
        with open("/proc/sys/kernel/overflowuid") as file:
            return (0,) if 0 in known else (0, int(file.read()))
    except (OSError, ValueError, IndexError):
        return (0,)


def _access_list(entry: str) -> bytes:
    try:
        return os.getxattr(entry, ACCESS_LIST)
    except OSError:  # it has none
        return b""


def lets_strangers_write(access_list: bytes, groups: List[int]) -> bool:
    """Whether a POSIX access list, as Linux stores it, lets others write than this user, root and these groups."""
    for at in range(4, len(access_list) - 7, 8):
        tag, allowed, who = struct.unpack_from("<HHI", access_list, at)
        if allowed & WRITE and (
            (tag == NAMED_USER and who not in (0, os.getuid()))
            or (tag == NAMED_GROUP and who not in groups)
        ):
            return True
    return False


def main(root: str, paths: List[str]) -> None:
    """Exit with 1 and one line on the first path that others could change."""
    for path in paths:
        try:
            fault = next(find_faults(path, root), None)
        except OSError as error:
            problem = "%s cannot be looked at: %s" % (path, error.strerror)
            fault = Fault(path, problem, "Look whether compute nodes see it")
        if fault:
            words = "furnace: %s. Nothing of it is run. %s" % fault[1:]
            print("".join(c if c.isprintable() else repr(c)[1:-1] for c in words))
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
