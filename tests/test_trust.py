"""What may be executed: nobody else can have written it, up to the runs' root. Another user is uid 65534 here."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from furnace_hpc.runs import host
from furnace_hpc.runs.checkpoint_files import complete, describe, is_complete
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.metrics import MetricsFile
from furnace_hpc.runs.snapshot import take_snapshot
from furnace_hpc.runs.trust import GROUP_ACCESS, check_trusted, keep_private
from furnace_hpc.spec.errors import ConfigError

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
@pytest.mark.parametrize("part", ["", "grid", "grid/run/checkpoints", "grid/run/checkpoints/step-1/zero/model.pt"])
def test_what_others_may_write_is_refused_with_the_mend(tree, part, mode):
    place = tree[0] / part
    place.chmod(place.stat().st_mode | mode)
    with pytest.raises(ConfigError, match=f"written by {'its group' if mode == 0o020 else 'all users'}") as refused:
        check_trusted(tree[1], tree[0])
    assert str(refused.value).endswith(f"chmod go-w {place}")
    place.chmod(place.stat().st_mode & ~0o022)  # the mend
    check_trusted(tree[1], tree[0])


def test_the_check_ends_at_the_root(tree):
    tree[0].parent.chmod(0o777)
    check_trusted(tree[1], tree[0])


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
    for place in (tree[0].parent, *tree[0].parent.parents):  # so that the other user gets there at all
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
    host.write_spec(str(run.path), "{}")
    host.begin(str(run.path), {})
    MetricsFile(run.metrics(1)).close()
    log = "import sys; from pathlib import Path; from furnace_hpc.cluster import task; "
    log += "task._write_to(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", log, run.log(1, 0)], check=True)
    made = {path: path.stat().st_mode & 0o7777 for path in run.path.parent.rglob("*") if path.exists()}
    assert {run.spec, run.attempt(1), run.metrics(1), run.log(1, 0)} <= made.keys()
    assert {path: mode for path, mode in made.items() if mode != (folder if path.is_dir() else file)} == {}


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

    from furnace_hpc.engine.shards import open_shards

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

    from furnace_hpc.engine import checkpoints

    class Alone:
        """One process, as load_newest asks it."""

        rank, world_size, is_rank_zero = 0, 1, True

        def broadcast(self, content):
            return content

    canary = tmp_path / "canary"
    run = RunFolder(tree[1].parent.parent)
    aside = tree[1].with_name("step-1.tmp-1")
    tree[1].rename(aside)
    torch.save(Bomb(canary), aside / "zero" / "mp_rank_00_model_states.pt")
    files = {f"zero/{path.name}": describe(path) for path in (aside / "zero").iterdir()}
    complete(aside, tree[1], {"step": 1, "world_size": 1, "zero_stage": 1}, files)
    tree[0].chmod(0o775)  # whoever is in the group can have written it, manifest and all
    for way in (checkpoints.load_newest, lambda *rest: checkpoints.load(rest[0], rest[1], 1, *rest[2:])):
        with pytest.raises(ConfigError, match="written by its group"):
            way(None, run, 0, Alone())
    assert not canary.exists()
