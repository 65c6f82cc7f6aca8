"""The rule about files that may be executed. The other user is uid 65534."""

import ctypes
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.host.access import GROUP_ACCESS
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.checkpoint_files import complete, describe, is_complete
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.snapshot import take_snapshot
from furnace_hpc.runs.trust import check_place, check_trusted, keep_private

OTHER_ID = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


def test_own_folder_is_trusted(tree):
    check_trusted(tree[1], tree[0])
    check_trusted(tree[1] / "zero" / "model.pt", tree[0])


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize(
    "part", ["", "grid", "grid/run/checkpoints", "grid/run/checkpoints/step-1/zero/model.pt"]
)
def test_writable_by_others_is_refused_with_a_fix(tree, part, mode):
    place = tree[0] / part
    place.chmod(place.stat().st_mode | mode)
    with pytest.raises(
        ConfigError, match=f"written by {'its group' if mode == 0o020 else 'all users'}"
    ) as refused:
        check_trusted(tree[1], tree[0])
    assert str(refused.value).endswith(f"chmod go-w {place}")
    place.chmod(place.stat().st_mode & ~0o022)  # as the message says
    check_trusted(tree[1], tree[0])


@pytest.mark.parametrize("mode", [0o2775, 0o770, 0o777, 0o757, 0o702])
def test_folder_above_the_root_that_others_write(tree, mode):
    """Other users could rename the root and put another in its place, whatever its mode."""
    above = tree[0].parent
    above.chmod(mode)
    who = "all users" if mode & 0o002 else "its group"
    for check in (
        lambda: check_trusted(tree[1], tree[0]),
        lambda: check_place(tree[0] / "new" / "grid", tree[0]),
    ):
        with pytest.raises(ConfigError) as refused:
            check()
        assert str(refused.value).startswith(
            f"{above} may be written by {who} (mode {mode:04o}) and is not sticky"
        )
        assert str(refused.value).endswith(
            f"let only owners rename: chmod +t {above}, or chmod go-w {above}"
        )
        assert refused.value.exit_code == 2
    for fixed in (mode | 0o1000, mode & ~0o022):
        above.chmod(fixed)
        check_trusted(tree[1], tree[0])
        check_place(tree[0] / "new" / "grid", tree[0])


def test_every_folder_from_the_top_is_checked(tmp_path, umask):
    tmp_path.chmod(0o755)
    deep = tmp_path / "a" / "b" / "c" / "runs"
    deep.mkdir(parents=True)
    check_place(deep, deep)
    for folder in ("a", "a/b", "a/b/c"):
        (tmp_path / folder).chmod(0o775)
        with pytest.raises(ConfigError, match=f"{tmp_path / folder} may be written by its group"):
            check_place(deep, deep)
        (tmp_path / folder).chmod(0o755)


def test_every_folder_on_the_way_of_a_link(tree, tmp_path):
    """runs -> way/link -> other/runs: the folders of both links are checked."""
    (tmp_path / "other").mkdir()
    (tmp_path / "way").mkdir()
    tree[0].rename(tmp_path / "other" / "runs")
    (tmp_path / "way" / "link").symlink_to("../other/runs")
    tree[0].symlink_to("way/link")
    check_trusted(tree[1], tree[0])
    for name in ("way", "other"):
        (tmp_path / name).chmod(0o777)
        with pytest.raises(ConfigError, match=f"{tmp_path / name} may be written by all users"):
            check_trusted(tree[1], tree[0])
        (tmp_path / name).chmod(0o755)
    (tmp_path / "way" / "link").unlink()
    (tmp_path / "way" / "link").symlink_to("link")
    with pytest.raises(OSError, match="symbolic links"):
        check_trusted(tree[1], tree[0])


def test_sticky_folder_below_the_root_is_refused(tree):
    """Other users could add a module there that Python finds first."""
    tree[1].chmod(0o1777)
    with pytest.raises(ConfigError, match="step-1 may be written by all users"):
        check_trusted(tree[1], tree[0])


@as_root
@pytest.mark.parametrize("what", ["folder", "link", "owner"])
def test_entry_of_another_user_in_a_sticky_folder(tree, tmp_path, what):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    tree[0].rename(tmp_path / "shared" / "runs")
    runs = tmp_path / "shared" / "runs"
    step = runs / tree[1].relative_to(tree[0])
    check_trusted(step, runs)
    if what == "link":
        (tmp_path / "shared" / "link").symlink_to(runs)
        step, runs = (
            tmp_path / "shared" / "link" / tree[1].relative_to(tree[0]),
            tmp_path / "shared" / "link",
        )
        check_trusted(step, runs)
    theirs = tmp_path / "shared" if what == "owner" else runs
    os.chown(theirs, OTHER_ID, OTHER_ID, follow_symlinks=False)
    with pytest.raises(ConfigError, match=rf"{theirs} .*belongs to user \w+, not to root"):
        check_trusted(step, runs)


@as_root
def test_folder_above_of_another_user_is_refused(tree):
    os.chown(tree[0].parent, OTHER_ID, OTHER_ID)
    with pytest.raises(
        ConfigError,
        match=r"belongs to user \w+, not to root: its owner could put anything in the",
    ):
        check_trusted(tree[1], tree[0])


def test_place_need_not_exist(tree):
    check_place(tree[0] / "new" / "newer", tree[0])
    with pytest.raises(FileNotFoundError):
        check_trusted(tree[0] / "new", tree[0])
    with pytest.raises(ConfigError, match="leads out of"):
        check_place(tree[0] / ".." / "elsewhere", tree[0])


@as_root
def test_unknown_owners_in_a_rootless_container(tree):
    """Folders of root, and of all owners that the container does not know, have the overflow id."""
    # the other user must be able to get there
    for place in (tree[0].parent, *tree[0].parent.parents):
        place.chmod(place.stat().st_mode | 0o011)
    # 1234 outside is 0 inside; root outside is unknown inside
    for place in (tree[0], *tree[0].rglob("*")):
        os.chown(place, 1234, 1234)
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        code = 43
        with suppress(BaseException):
            if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
                os._exit(42)
            os.write(ready[1], b"1")
            os.read(go[0], 1)
            os.setgid(0)
            os.setuid(0)
            code = 44 if tree[0].parent.stat().st_uid == 0 else code
            check_trusted(tree[1], tree[0])
            code = 0
        os._exit(code)
    os.close(ready[1])
    if os.read(ready[0], 1) == b"1":
        Path(f"/proc/{pid}/uid_map").write_text("0 1234 1\n")
        Path(f"/proc/{pid}/gid_map").write_text("0 1234 1\n")
    os.write(go[1], b"1")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for end in (ready[0], *go):
        os.close(end)
    if code == 42:
        pytest.skip("this kernel makes no user namespaces")
    assert code == 0


def test_sticky_root_is_trusted(tree):
    tree[0].chmod(0o1777)
    check_trusted(tree[1], tree[0])


def test_group_access_trusts_the_group_only(tree, monkeypatch):
    monkeypatch.setenv(GROUP_ACCESS, "1")
    tree[1].chmod(0o770)
    check_trusted(tree[1], tree[0])
    tree[1].chmod(0o777)
    with pytest.raises(ConfigError, match="all users"):
        check_trusted(tree[1], tree[0])


@as_root
@pytest.mark.parametrize("part", ["", "grid/run", "grid/run/checkpoints/step-1/zero/model.pt"])
def test_file_of_another_user_is_refused(tree, part):
    os.chown(tree[0] / part, OTHER_ID, OTHER_ID)
    with pytest.raises(ConfigError, match=r"belongs to user \w+, not to root"):
        check_trusted(tree[1], tree[0])


@as_root
def test_root_may_own_folders_but_no_file(tree):
    for place in (tree[1], tree[1] / "zero"):
        os.chown(place, OTHER_ID, OTHER_ID)
    os.chown(tree[1] / "zero" / "model.pt", OTHER_ID, OTHER_ID)
    # the other user must be able to get there
    for place in (tree[0].parent, *tree[0].parent.parents):
        if place.stat().st_uid == 0 and place.stat().st_mode & 0o007 == 0:
            place.chmod(place.stat().st_mode | 0o011)
    child = os.fork()
    if not child:
        os.setuid(OTHER_ID)
        code = 2
        try:
            check_trusted(tree[1], tree[0])  # the folders above belong to root
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.chown(tree[1] / "zero" / "model.pt", 0, 0)
    child = os.fork()
    if not child:
        os.setuid(OTHER_ID)
        code = 2
        try:
            check_trusted(tree[1], tree[0])
        except ConfigError as refused:
            code = 7 if "belongs to user root" in str(refused) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_link_out_of_the_root_is_refused(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.pt").write_bytes(b"x")
    (tree[1] / "zero" / "more.pt").symlink_to(tmp_path / "elsewhere" / "model.pt")
    with pytest.raises(ConfigError, match="leads out of"):
        check_trusted(tree[1], tree[0])
    (tree[1] / "zero" / "more.pt").unlink()
    (tree[1].parent / "step-2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        check_trusted(tree[1].parent / "step-2", tree[0])


def test_manifest_with_outside_files_is_refused(tree, tmp_path):
    (tmp_path / "secret").write_text("x")
    aside = tree[1].with_name("step-1.tmp-1")
    tree[1].rename(aside)
    outside = os.path.relpath(tmp_path / "secret", tree[1])
    complete(aside, tree[1], {}, {outside: describe(tmp_path / "secret")})
    assert not is_complete(tree[1])


@pytest.mark.parametrize(("group", "folder", "file"), [(False, 0o700, 0o600), (True, 0o770, 0o660)])
def test_created_files_are_private_or_the_groups(tmp_path, umask, group, folder, file):
    keep_private(group)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert (tmp_path / "folder").stat().st_mode & 0o7777 == folder
    assert (tmp_path / "file").stat().st_mode & 0o7777 == file
    assert os.environ.get(GROUP_ACCESS) == ("1" if group else None)
    run = RunFolder(tmp_path / "runs" / "base-s0-1")
    lifecycle.write_spec(str(run.path), "{}")
    lifecycle.begin(str(run.path), {})
    MetricsFile(run.metrics(1)).close()
    log = "import sys; from pathlib import Path; from furnace_hpc.launch import rank_main; "
    log += "rank_main._write_to(Path(sys.argv[1]), rank_main.Rank(0, 0, 1, 0))"
    subprocess.run([sys.executable, "-c", log, run.log(1, 0)], check=True)
    made = {
        path: path.stat().st_mode & 0o7777 for path in run.path.parent.rglob("*") if path.exists()
    }
    assert {run.spec, run.attempt(1), run.metrics(1), run.log(1, 0)} <= made.keys()
    assert {
        path: mode for path, mode in made.items() if mode != (folder if path.is_dir() else file)
    } == {}


def test_writable_snapshot_is_refused(tmp_path, umask):
    keep_private()
    folder = GridFolder(tmp_path / "runs" / "study")
    taken = take_snapshot(folder)
    assert {path.stat().st_mode & 0o777 for path in taken.rglob("*.py")} == {0o400}
    assert take_snapshot(folder) == taken
    (taken / "furnace_hpc").chmod(0o770)
    with pytest.raises(ConfigError, match="its group"):
        take_snapshot(folder)
