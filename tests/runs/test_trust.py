"""What may be executed: nobody else can have written it, up to the runs' root. Another user is uid 65534 here."""

import ctypes
import os
import pickle
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.host.access import GROUP_ACCESS, lets_strangers_write
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.records.checkpoint_files import complete, describe, is_complete
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.snapshot import take_snapshot
from furnace_hpc.runs.trust import check_place, check_trusted, keep_private

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def umask(monkeypatch):
    """The process's umask and group access are as before, after the test."""
    monkeypatch.setenv(GROUP_ACCESS, "")
    monkeypatch.delenv(GROUP_ACCESS)
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def tree(tmp_path, umask):
    """runs/grid/run/checkpoints/step-1 with one file; returns (runs, checkpoint)."""
    step = tmp_path / "runs" / "grid" / "run" / "checkpoints" / "step-1"
    (step / "zero").mkdir(parents=True)
    (step / "zero" / "model.pt").write_bytes(b"x")
    return tmp_path / "runs", step


def test_a_folder_of_ones_own_is_trusted(tree):
    check_trusted(tree[1], tree[0])
    check_trusted(tree[1] / "zero" / "model.pt", tree[0])


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize(
    "part", ["", "grid", "grid/run/checkpoints", "grid/run/checkpoints/step-1/zero/model.pt"]
)
def test_what_others_may_write_is_refused_with_the_mend(tree, part, mode):
    place = tree[0] / part
    place.chmod(place.stat().st_mode | mode)
    with pytest.raises(
        ConfigError, match=f"written by {'its group' if mode == 0o020 else 'all users'}"
    ) as refused:
        check_trusted(tree[1], tree[0])
    assert str(refused.value).endswith(f"chmod go-w {place}")
    place.chmod(place.stat().st_mode & ~0o022)  # the fix
    check_trusted(tree[1], tree[0])


@pytest.mark.parametrize("mode", [0o2775, 0o770, 0o777, 0o757, 0o702])
def test_a_folder_above_the_root_that_others_write(tree, mode):
    """They could rename the root, whatever its own mode, and put another in its place."""
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


def test_every_folder_up_to_the_top_counts(tmp_path, umask):
    tmp_path.chmod(0o755)
    deep = tmp_path / "a" / "b" / "c" / "runs"
    deep.mkdir(parents=True)
    check_place(deep, deep)
    for folder in ("a", "a/b", "a/b/c"):
        (tmp_path / folder).chmod(0o775)
        with pytest.raises(ConfigError, match=f"{tmp_path / folder} may be written by its group"):
            check_place(deep, deep)
        (tmp_path / folder).chmod(0o755)


def test_every_folder_on_the_way_of_a_link_counts(tree, tmp_path):
    """runs -> way/link -> other/runs: the folders of both links count too."""
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


def test_below_the_root_a_sticky_folder_is_no_help(tree):
    """Others cannot replace what is there, and can add a module that Python finds first."""
    tree[1].chmod(0o1777)
    with pytest.raises(ConfigError, match="step-1 may be written by all users"):
        check_trusted(tree[1], tree[0])


@as_root
@pytest.mark.parametrize("what", ["folder", "link", "owner"])
def test_an_entry_of_another_in_a_sticky_folder(tree, tmp_path, what):
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
    os.chown(theirs, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"{theirs} .*belongs to user nobody, not to root"):
        check_trusted(step, runs)


@as_root
def test_who_owns_a_folder_above_can_rename_what_is_in_it(tree):
    os.chown(tree[0].parent, NOBODY, NOBODY)
    with pytest.raises(
        ConfigError,
        match=r"belongs to user nobody, not to root: its owner could put anything in the",
    ):
        check_trusted(tree[1], tree[0])


def test_a_path_that_is_not_there_is_no_fault_of_a_place(tree):
    check_place(tree[0] / "new" / "newer", tree[0])
    with pytest.raises(FileNotFoundError):
        check_trusted(tree[0] / "new", tree[0])
    with pytest.raises(ConfigError, match="leads out of"):
        check_place(tree[0] / ".." / "elsewhere", tree[0])


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX access list as Linux keeps it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NONE = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("entry", "strangers"),
    [
        ((USER, 7, NOBODY), True),
        ((USER, 5, NOBODY), False),
        ((USER, 7, os.getuid()), False),
        ((GROUP, 7, NOBODY), True),
        ((GROUP, 5, NOBODY), False),
        ((GROUP, 7, os.getgid()), False),
    ],
)
def test_access_lists_count_though_the_group_is_trusted(tree, monkeypatch, entry, strangers):
    words = acl((OWNER, 7, NONE), entry, (GROUP_OBJ, 7, NONE), (MASK, 7, NONE), (OTHER, 0, NONE))
    if entry[0] == GROUP:
        words = acl(
            (OWNER, 7, NONE), (GROUP_OBJ, 7, NONE), entry, (MASK, 7, NONE), (OTHER, 0, NONE)
        )
    try:
        os.setxattr(tree[1], "system.posix_acl_access", words)
    except OSError:
        pytest.skip("this file system has no access lists")
    with pytest.raises(ConfigError, match="may be written by its group"):  # where the mask stands
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
def test_any_access_list_gets_an_answer(content):
    assert lets_strangers_write(content, [0]) in (True, False)


@as_root
@pytest.mark.fuzz
@given(data=st.data())
def test_what_is_trusted_the_kernel_keeps_from_others(data, tmp_path_factory):
    """Any owners, groups and modes of a chain of folders, links in it: where the rule trusts, no attack works."""
    top = tmp_path_factory.mktemp("chain")
    for place in (top, *top.parents):
        if place.stat().st_uid == 0 and not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)
    top.chmod(0o755)
    owners, groups = st.sampled_from([0, 0, 0, NOBODY]), st.sampled_from([0, LAB])
    modes = st.sampled_from(
        [0o700, 0o755, 0o711, 0o775, 0o2775, 0o777, 0o757, 0o1777, 0o1775, 0o3775]
    )
    chain, place = [], top
    for name in ("a", "b", "runs", "step"):
        real = place / name
        if name != "step" and data.draw(st.booleans()):
            real = place / f"{name}.real"
            (place / name).symlink_to(real.name)
            os.chown(place / name, data.draw(owners), 0, follow_symlinks=False)
        real.mkdir()
        chain.append(real)
        place = real
    victim = place / "model.pt"
    victim.write_bytes(b"x")
    for entry in (*chain, victim):
        os.chown(entry, data.draw(owners), data.draw(groups))
        entry.chmod(data.draw(modes))
    named = top / "a" / "b" / "runs"
    before = (named / "step" / "model.pt").stat().st_ino
    try:
        check_trusted(named / "step", named)
        trusted = True
    except ConfigError:
        trusted = False
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.setgroups([LAB])
            os.setgid(LAB)
            os.setuid(NOBODY)
            attack([top / "a", top / "a" / "b", *chain, victim])
            attack(sorted(top.rglob("*")))
        os._exit(0)
    os.waitpid(child, 0)
    step = named / "step"
    same = step.exists() and [(path.name, path.stat().st_ino) for path in step.iterdir()] == [
        ("model.pt", before)
    ]
    same = same and (step / "model.pt").read_bytes() == b"x"
    shutil.rmtree(top)
    event(f"trusted: {trusted}, changed: {not same}")
    if trusted:
        assert same


LAB = 4242


def attack(places: list[Path]) -> None:
    """Everything that another user can try: write, open, add, rename, at every folder and file."""
    for place in places:
        with suppress(OSError):
            place.chmod(0o777)
        with suppress(OSError):
            (place / "torch.py").write_text("bomb")
        with suppress(OSError):
            place.write_bytes(b"bomb")
    for place in reversed(places):
        with suppress(OSError):
            place.rename(place.with_name(f"{place.name}.aside"))
            place.mkdir()
            (place / "model.pt").write_bytes(b"bomb")


@as_root
def test_in_a_rootless_container_unknown_folders_are_roots(tree):
    """There root's folders belong to the overflow id, as everything does whose owner the container does not know."""
    # so that the other user gets there at all
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


def test_a_sticky_folder_is_one_in_which_nothing_can_be_replaced(tree):
    tree[0].chmod(0o1777)
    check_trusted(tree[1], tree[0])


def test_the_group_may_write_where_the_profile_says_so_and_others_never(tree, monkeypatch):
    monkeypatch.setenv(GROUP_ACCESS, "1")
    tree[1].chmod(0o770)
    check_trusted(tree[1], tree[0])
    tree[1].chmod(0o777)
    with pytest.raises(ConfigError, match="all users"):
        check_trusted(tree[1], tree[0])


@as_root
@pytest.mark.parametrize("part", ["", "grid/run", "grid/run/checkpoints/step-1/zero/model.pt"])
def test_what_belongs_to_another_user_is_refused(tree, part):
    os.chown(tree[0] / part, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match="belongs to user nobody, not to root"):
        check_trusted(tree[1], tree[0])


@as_root
def test_root_may_own_folders_but_no_file(tree):
    for place in (tree[1], tree[1] / "zero"):
        os.chown(place, NOBODY, NOBODY)
    os.chown(tree[1] / "zero" / "model.pt", NOBODY, NOBODY)
    # so that the other user gets there at all
    for place in (tree[0].parent, *tree[0].parent.parents):
        if place.stat().st_uid == 0 and place.stat().st_mode & 0o007 == 0:
            place.chmod(place.stat().st_mode | 0o011)
    child = os.fork()
    if not child:
        os.setuid(NOBODY)
        code = 2
        try:
            check_trusted(tree[1], tree[0])  # its folders above are root's
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.chown(tree[1] / "zero" / "model.pt", 0, 0)
    child = os.fork()
    if not child:
        os.setuid(NOBODY)
        code = 2
        try:
            check_trusted(tree[1], tree[0])
        except ConfigError as refused:
            code = 7 if "belongs to user root" in str(refused) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_link_out_of_the_root_is_not_followed(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.pt").write_bytes(b"x")
    (tree[1] / "zero" / "more.pt").symlink_to(tmp_path / "elsewhere" / "model.pt")
    with pytest.raises(ConfigError, match="leads out of"):
        check_trusted(tree[1], tree[0])
    (tree[1] / "zero" / "more.pt").unlink()
    (tree[1].parent / "step-2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        check_trusted(tree[1].parent / "step-2", tree[0])


def test_a_manifest_that_names_files_elsewhere_makes_no_checkpoint(tree, tmp_path):
    (tmp_path / "secret").write_text("x")
    aside = tree[1].with_name("step-1.tmp-1")
    tree[1].rename(aside)
    outside = os.path.relpath(tmp_path / "secret", tree[1])
    complete(aside, tree[1], {}, {outside: describe(tmp_path / "secret")})
    assert not is_complete(tree[1])


@pytest.mark.parametrize(("group", "folder", "file"), [(False, 0o700, 0o600), (True, 0o770, 0o660)])
def test_what_is_made_is_private_or_the_groups(tmp_path, umask, group, folder, file):
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
    log += "rank_main._write_to(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", log, run.log(1, 0)], check=True)
    made = {
        path: path.stat().st_mode & 0o7777 for path in run.path.parent.rglob("*") if path.exists()
    }
    assert {run.spec, run.attempt(1), run.metrics(1), run.log(1, 0)} <= made.keys()
    assert {
        path: mode for path, mode in made.items() if mode != (folder if path.is_dir() else file)
    } == {}


def test_a_snapshot_that_others_can_change_is_not_run(tmp_path, umask):
    keep_private()
    folder = GridFolder(tmp_path / "runs" / "study")
    taken = take_snapshot(folder)
    assert {path.stat().st_mode & 0o777 for path in taken.rglob("*.py")} == {0o400}
    assert take_snapshot(folder) == taken
    (taken / "furnace_hpc").chmod(0o770)
    with pytest.raises(ConfigError, match="its group"):
        take_snapshot(folder)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_a_malicious_checkpoint_is_refused_before_it_is_opened(tree, tmp_path):
    import torch

    from furnace_hpc.engine.checkpoint.shards import open_shards

    canary = tmp_path / "canary"
    shards = tree[1] / "zero"
    (shards / "model.pt").unlink()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save(Bomb(canary), shards / name)
    (shards / "mp_rank_00_model_states.pt").chmod(0o664)
    with pytest.raises(ConfigError, match="its group"):
        open_shards(shards)
    assert not canary.exists()
    (shards / "mp_rank_00_model_states.pt").chmod(0o644)
    with pytest.raises((TypeError, RuntimeError, pickle.UnpicklingError)):
        open_shards(shards)
    assert canary.exists()  # the bomb is a real one: only the check stands before it


def test_a_run_does_not_load_a_malicious_checkpoint_though_its_hashes_are_right(tree, tmp_path):
    import torch
    from make import make_config, make_context

    from furnace_hpc.engine.checkpoint import loader

    canary = tmp_path / "canary"
    run = RunFolder(tree[1].parent.parent)
    aside = tree[1].with_name("step-1.tmp-1")
    tree[1].rename(aside)
    torch.save(Bomb(canary), aside / "zero" / "mp_rank_00_model_states.pt")
    files = {f"zero/{path.name}": describe(path) for path in (aside / "zero").iterdir()}
    complete(aside, tree[1], {"step": 1, "world_size": 1, "zero_stage": 1}, files)
    tree[0].chmod(0o775)  # whoever is in the group can have written it, manifest and all
    context = make_context(make_config(), engine=None, folder=run.path)
    for load in (loader.load_newest, lambda context: loader.load(context, 1)):
        with pytest.raises(ConfigError, match="written by its group"):
            load(context)
    assert not canary.exists()
