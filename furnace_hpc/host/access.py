"""Find who else can change a file or replace it: the rule for all that is executed or unpickled.

    python3 -I -S access.py ROOT PATH ...      prints the first fault and exits with 1

Standard library only, syntax of Python 3.6. Batch scripts contain this text and run it before any
code on a shared disk.

The check starts at /. Other users cannot change an entry of a folder that has passed. So nothing
below it can be replaced between the check and the use.
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

# 1 if the profile says `group: true`: the user's groups may read and write the runs
GROUP_ACCESS = "FURNACE_GROUP_ACCESS"
IF_UNCHANGED = "If no other user has changed it: "
MAX_LINKS = 40  # the kernel's limit
# Linux: uapi/linux/posix_acl*.h
ACCESS_LIST, DEFAULT_LIST = "system.posix_acl_access", "system.posix_acl_default"
NAMED_USER, NAMED_GROUP, WRITE = 2, 8, 2


class Fault(NamedTuple):
    """A file, folder or link that other users could change, how, and how to fix it."""

    place: str
    problem: str
    fix: str


def find_faults(
    path: str, root: str, with_content: bool = True, trust_root: bool = False
) -> Iterator[Fault]:
    """Everything on the way to `path` that other users could change. Empty if `path` is safe.

    This user and root may change folders. With FURNACE_GROUP_ACCESS=1 so may the user's groups.

    Args:
        path: a file or a folder.
        root: the folder that must contain `path`. Sticky folders such as /tmp are safe from / down
            to it: other users can add to them, but replace nothing. Below it other users may not
            even add files.
        with_content: check also everything in the folder. Else the folder need not exist yet.
        trust_root: files of root are safe too, not only its folders and links.

    Raises:
        OSError: the path does not exist, or this user may not look at it.
    """
    top, pending, seen = os.path.realpath(root), [path], set()
    while pending:
        here = pending.pop()
        for entry, facts in _entries_on_way(here, with_content):
            yield from _faults_of(entry, facts, here, top, trust_root)
        real = os.path.realpath(
            here
        )  # it cannot change any more if all entries on the way have passed
        if not _is_in(real, top):
            problem = f"{here} leads out of {root}, to {real}"
            yield Fault(here, problem, f"Replace the link by a copy of {shlex.quote(real)}")
        elif with_content and real not in seen and os.path.isdir(real):
            seen.add(real)
            yield from _faults_of(real, os.lstat(real), here, "", trust_root)
            yield from _faults_in(real, pending, trust_root)


def _entries_on_way(path: str, must_exist: bool) -> Iterator[Tuple[str, os.stat_result]]:
    """Every folder and link from / to `path`, as the kernel resolves it."""
    place, num_links = "/", 0
    yield place, os.lstat(place)
    todo = os.path.join(os.getcwd(), path).split("/")[::-1]
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)
            continue
        entry = os.path.join(place, name)
        if not must_exist and not os.path.lexists(entry):
            return
        facts = os.lstat(entry)
        yield entry, facts
        if not stat.S_ISLNK(facts.st_mode):
            place = entry
            continue
        num_links += 1
        if num_links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(entry)
        if target.startswith("/"):
            place = "/"
        todo += target.split("/")[::-1]


def _faults_in(folder: str, links: List[str], trust_root: bool) -> Iterator[Fault]:
    """The faults of everything below a folder. Adds the links that it finds to `links`."""
    for name in sorted(os.listdir(folder)):
        entry = os.path.join(folder, name)
        try:
            facts = os.lstat(entry)
        except FileNotFoundError:  # a temporary file that is gone by now
            continue
        yield from _faults_of(entry, facts, entry, "", trust_root)
        if stat.S_ISDIR(facts.st_mode):
            yield from _faults_in(entry, links, trust_root)
        elif stat.S_ISLNK(facts.st_mode):
            links.append(entry)


def _is_in(entry: str, folder: str) -> bool:
    return entry == folder or entry.startswith(folder.rstrip("/") + "/")


def _faults_of(
    entry: str, facts: os.stat_result, path: str, top: str, trust_root: bool
) -> Iterator[Fault]:
    """How other users could change one entry.

    Args:
        entry: a file, folder or link.
        facts: its lstat.
        path: the checked path. `entry` is this path, or on the way to it.
        top: the real path of the root. Empty if `entry` lies below `path`.
        trust_root: files of root are safe too.
    """
    groups = [os.getegid()] + os.getgroups()
    in_group = facts.st_gid in groups
    is_trusted_group = in_group and os.environ.get(GROUP_ACCESS) == "1"
    could_trust = in_group and not is_trusted_group
    is_link, is_folder = stat.S_ISLNK(facts.st_mode), stat.S_ISDIR(facts.st_mode)
    is_above = bool(top) and not _is_in(entry, top)
    replaced = path if is_above else ""
    may_be_root = is_folder or is_link or trust_root
    is_own = facts.st_uid == os.getuid() or (may_be_root and facts.st_uid in _roots())
    if not is_own and not is_trusted_group:
        yield _owned_fault(entry, facts, path, _trust(facts.st_gid, could_trust))
    elif is_link or (is_folder and facts.st_mode & stat.S_ISVTX and (is_above or entry == top)):
        return  # links cannot be written; only the owners of its entries can replace them
    elif facts.st_mode & stat.S_IWOTH:
        yield _written_fault(entry, facts, replaced, "all users", [])
    elif not facts.st_mode & stat.S_IWGRP:
        return
    elif not is_trusted_group and not _is_own_group(facts.st_gid):
        advice = _trust(facts.st_gid, could_trust)
        yield _written_fault(entry, facts, replaced, "its group", advice)
    elif lets_strangers_write(_read_list(entry, ACCESS_LIST), groups):
        problem = f"{entry} may be written by users or groups of its access list that are not yours"
        yield Fault(entry, problem, f"Remove the list: setfacl -b {shlex.quote(entry)}")


def _trust(gid: int, could_trust: bool) -> List[str]:
    """The advice to trust a group. It asks for the group's name, which takes a while."""
    if not could_trust:
        return []
    return [f"trust all of group {_group(gid)} (group: true in the cluster profile)"]


def _owned_fault(entry: str, facts: os.stat_result, path: str, advice: List[str]) -> Fault:
    """The fault of an entry that belongs to another user."""
    me, owner, mode = _user(os.getuid()), _user(facts.st_uid), stat.S_IMODE(facts.st_mode)
    problem = f"{entry} (mode {mode:04o}) belongs to user {owner}, not to {me}"
    if entry == path:
        problem += ": its content could run anything as you"
        fix = f"If you trust it, make your own copy, or: chown {me} {shlex.quote(entry)}"
        return Fault(entry, problem, fix)
    problem += f": its owner could put anything in the place of {path}"
    return Fault(entry, problem, _one_of(["choose another place (--runs-root)"] + advice))


def _written_fault(
    entry: str, facts: os.stat_result, replaced: str, who: str, advice: List[str]
) -> Fault:
    """The fault of an entry that other users may write.

    Args:
        entry: a file, folder or link.
        facts: its lstat.
        replaced: the path below it that they could replace. Empty if the entry itself is loaded.
        who: the users.
        advice: other fixes.
    """
    mode, quoted = stat.S_IMODE(facts.st_mode), shlex.quote(entry)
    is_mine = os.getuid() in (0, facts.st_uid)
    problem = f"{entry} may be written by {who} (mode {mode:04o})"
    if not replaced:
        problem += ": its content could run anything as you"
        if not is_mine or facts.st_mode & stat.S_ISVTX:
            return Fault(entry, problem, "Move the files to a folder that only you can write")
        return Fault(entry, problem, IF_UNCHANGED + _close_command(entry))
    problem += f" and is not sticky: they could put anything in the place of {replaced}"
    fixes = ["choose another place (--runs-root)"] + advice
    if is_mine:
        fixes += [f"let only owners rename: chmod +t {quoted}", _close_command(entry)]
    else:
        fixes.append(f"ask user {_user(facts.st_uid)} for: chmod +t {quoted}")
    return Fault(entry, problem, _one_of(fixes))


def _close_command(entry: str) -> str:
    """The command after which only the owner can write an entry.

    A default access list overrides the umask. Without removing it, new entries would be writable
    again.
    """
    quoted = shlex.quote(entry)
    if _read_list(entry, DEFAULT_LIST):
        return f"setfacl -R -b -k {quoted} && chmod -R go-w {quoted}"
    if _read_list(entry, ACCESS_LIST):
        return f"setfacl -b {quoted} && chmod go-w {quoted}"
    return f"chmod go-w {quoted}"


def _one_of(fixes: List[str]) -> str:
    text = ", or ".join(fixes)
    return text[0].upper() + text[1:]


def _is_own_group(gid: int) -> bool:
    """Whether it is the user's private group: primary, of the user's name, without other members.

    Many systems give each user such a group, and a umask of 002. Root's group does not count.
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


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _roots() -> Tuple[int, ...]:
    """User ids that count as root.

    A user namespace without root (a rootless container) shows all owners that it does not know as
    one id. It counts too.
    """
    try:
        with open("/proc/self/uid_map") as file:
            known = [int(line.split()[1]) for line in file]
        with open("/proc/sys/kernel/overflowuid") as file:
            unknown = int(file.read())
    except (OSError, ValueError, IndexError):
        return (0,)
    if 0 in known:
        return (0,)
    return (0, unknown)


def _read_list(entry: str, name: str) -> bytes:
    """The access list or the default list of an entry. Empty if there is none."""
    try:
        return os.getxattr(entry, name)
    except OSError:
        return b""


def lets_strangers_write(access_list: bytes, groups: List[int]) -> bool:
    """Whether a POSIX access list lets others write than this user, root and these groups.

    Args:
        access_list: the list as Linux stores it.
        groups: ids of the trusted groups.
    """
    for at in range(4, len(access_list) - 7, 8):
        tag, allowed, who = struct.unpack_from("<HHI", access_list, at)
        is_stranger = (tag == NAMED_USER and who not in (0, os.getuid())) or (
            tag == NAMED_GROUP and who not in groups
        )
        if is_stranger and allowed & WRITE:
            return True
    return False


def main(root: str, paths: List[str]) -> None:
    """Print one line and exit with 1 for the first path that other users could change."""
    for path in paths:
        try:
            fault = next(find_faults(path, root), None)
        except OSError as error:
            problem = f"{path} cannot be checked: {error.strerror}"
            fault = Fault(path, problem, "Check that compute nodes can see it")
        if fault:
            line = f"furnace: {fault.problem}. Nothing of it is run. {fault.fix}"
            print("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
