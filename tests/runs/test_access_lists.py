"""POSIX access lists: whom they let write, and how to remove them."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.access import GROUP_ACCESS, lets_strangers_write
from furnace_hpc.runs.trust import check_trusted

OTHER_ID = 65534


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX access list as Linux stores it, from entries (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


NONE = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("entry", "strangers"),
    [
        ((USER, 7, OTHER_ID), True),
        ((USER, 5, OTHER_ID), False),
        ((USER, 7, os.getuid()), False),
        ((GROUP, 7, OTHER_ID), True),
        ((GROUP, 5, OTHER_ID), False),
        ((GROUP, 7, os.getgid()), False),
    ],
)
def test_access_list_of_a_trusted_group(tree, monkeypatch, entry, strangers):
    words = acl((OWNER, 7, NONE), entry, (GROUP_OBJ, 7, NONE), (MASK, 7, NONE), (OTHER, 0, NONE))
    if entry[0] == GROUP:
        words = acl(
            (OWNER, 7, NONE), (GROUP_OBJ, 7, NONE), entry, (MASK, 7, NONE), (OTHER, 0, NONE)
        )
    try:
        os.setxattr(tree[1], "system.posix_acl_access", words)
    except OSError:
        pytest.skip("this file system has no access lists")
    with pytest.raises(
        ConfigError, match="may be written by its group"
    ):  # the mode shows the mask there
        check_trusted(tree[1], tree[0])
    monkeypatch.setenv(GROUP_ACCESS, "1")
    if strangers:
        with pytest.raises(
            ConfigError, match=rf"step-1 may be written by users or .* setfacl -b {tree[1]}$"
        ):
            check_trusted(tree[1], tree[0])
    else:
        check_trusted(tree[1], tree[0])


@pytest.mark.fuzz
@given(st.binary(max_size=80))
def test_any_access_list_is_parsed(content):
    assert lets_strangers_write(content, [0]) in (True, False)


@pytest.mark.parametrize(
    ("names", "command"),
    [
        (("access",), "setfacl -b {0} && chmod go-w {0}"),
        (("access", "default"), "setfacl -R -b -k {0} && chmod -R go-w {0}"),
    ],
)
def test_hint_removes_access_lists(tree, names, command):
    """New entries of a folder with a default list would be writable again after chmod alone."""
    words = acl(
        (OWNER, 7, NONE),
        (GROUP_OBJ, 7, NONE),
        (GROUP, 7, OTHER_ID),
        (MASK, 7, NONE),
        (OTHER, 0, NONE),
    )
    try:
        for name in names:
            os.setxattr(tree[1], f"system.posix_acl_{name}", words)
    except OSError:
        pytest.skip("this file system has no access lists")
    with pytest.raises(ConfigError) as refused:
        check_trusted(tree[1], tree[0])
    assert str(refused.value).endswith(f"changed it: {command.format(tree[1])}")
    for name in names:  # what setfacl does
        os.removexattr(tree[1], f"system.posix_acl_{name}")
    tree[1].chmod(0o755)
    (tree[1] / "new").mkdir()
    check_trusted(tree[1], tree[0])
