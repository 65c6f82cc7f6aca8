"""Snapshots: an exact copy of the code at submit, named by its content, never changed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from login_study import tree

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.sources import read_own_code
from furnace_hpc.runs import snapshot
from furnace_hpc.runs.code import DECIDING, PACKAGE
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.own_code import find_own_code
from furnace_hpc.runs.snapshot import check_snapshot, copy_code, source, take_snapshot

TAKE = """
import json, sys
from pathlib import Path
from furnace_hpc.runs import code
from furnace_hpc.runs import folder
from furnace_hpc.runs import snapshot
taken = str(snapshot.take_snapshot(folder.GridFolder(Path(sys.argv[1])))) if sys.argv[1:] else ""
hashes = [code.code_hash(), snapshot.source().snapshot_hash]
print(json.dumps([taken, str(code.PACKAGE.parent), code.git_commit(), hashes]))
"""
PARTS = ("furnace_hpc", "ds_configs")
GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org")
# without variables that configure Python or git
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PYTHON"))
}
CLEAN |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


@pytest.fixture(autouse=True)
def _fresh_source():
    snapshot._source.cache_clear()
    yield
    snapshot._source.cache_clear()


def at(root: Path, *study: Path, **more: str) -> SimpleNamespace:
    """Commit and hashes of the code in `root`, after it took a snapshot into `study`."""
    environment = CLEAN | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"} | more
    command = [sys.executable, "-c", TAKE, *map(str, study)]
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    taken, place, commit, hashes = json.loads(answer)
    assert place == str(root)
    return SimpleNamespace(taken=Path(taken), commit=commit, hashes=hashes)


def git(root: Path, *arguments: str) -> str:
    command = [*GIT, "-C", str(root), *arguments]
    return subprocess.run(
        command, env=CLEAN, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def copy(tmp_path) -> Path:
    root = tmp_path / "copy"
    for name in PARTS:
        shutil.copytree(PACKAGE.parent / name, root / name)  # with compiled files: they are valid
    return root


@pytest.fixture
def checkout(copy) -> Path:
    (copy / ".gitignore").write_text("__pycache__\n")
    for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "all")):
        git(copy, *arguments)
    return copy


def code_in(root: Path) -> dict[str, str]:
    """Hash of each file of the package and the DeepSpeed files."""
    found = {
        f"{part}/{name}": word for part in PARTS for name, word in tree(root / part).items() if word
    }
    return {name: word for name, word in found.items() if "__pycache__" not in name}


def facts_of(taken: Path) -> dict:
    return json.loads((taken / "snapshot.json").read_text())


def test_snapshot_is_an_exact_read_only_copy(tmp_path):
    taken = take_snapshot(GridFolder(tmp_path))
    assert code_in(taken) == code_in(PACKAGE.parent)
    assert {path.name for path in taken.iterdir()} == {*PARTS, "snapshot.json", "changes.diff"}
    files = [(taken / name).stat() for name in code_in(taken)]
    assert {file.st_mode & 0o777 for file in files} <= {
        0o444,
        0o440,
        0o400,
    }  # read-only, within the umask
    facts = facts_of(taken)
    assert (facts["num_files"], facts["num_bytes"]) == (
        len(files),
        sum(file.st_size for file in files),
    )
    digest = hashlib.sha256()
    for name in sorted(code_in(taken), key=lambda name: Path(name).parts):
        content = (taken / name).read_bytes()
        digest.update(name.encode() + b"\0" + str(len(content)).encode() + b"\0" + content)
    assert taken.name == source().snapshot_hash == digest.hexdigest()[:12]


def test_second_snapshot_is_the_first(tmp_path):
    taken = take_snapshot(GridFolder(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in taken.rglob("*")}
    assert take_snapshot(GridFolder(tmp_path)) == taken
    assert {path: path.stat().st_mtime_ns for path in taken.rglob("*")} == before


def test_the_copy_of_a_killed_submission(tmp_path):
    """The next submission removes it. Runs never import own code from it."""
    package = tmp_path / "mine.py"
    package.write_text("a = 1\n")
    own, grid = read_own_code([package], "a grid"), GridFolder(tmp_path / "runs" / "grid")
    grid.path.mkdir(parents=True, mode=0o700)
    killed = copy_code(grid, own).temporary
    with pytest.raises(ConfigError, match="no snapshot in"):
        find_own_code(own.sha256, grid.run("a-s0-00000000"))
    taken = take_snapshot(grid, own)
    assert not killed.exists()
    assert list(grid.code.iterdir()) == [taken]
    assert find_own_code(own.sha256, grid.run("a-s0-00000000")) == taken / "own_code"


def edit(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b"\n")


CHANGES = {
    "a line more": lambda root: edit(root / "furnace_hpc/train.py"),
    "a DeepSpeed file": lambda root: edit(root / "ds_configs/zero1.json"),
    "a file less": lambda root: (root / "furnace_hpc/schema.py").unlink(),
    "a file more": lambda root: (root / "furnace_hpc/config/more.py").touch(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_snapshot_is_refused(tmp_path, change):
    taken = take_snapshot(GridFolder(tmp_path))
    CHANGES[change](taken)
    words = f"^code snapshot {taken} has been changed .* Move it away, and submit .* --code new$"
    with pytest.raises(ConfigError, match=words):
        check_snapshot(taken)
    with pytest.raises(ConfigError, match=words):
        take_snapshot(GridFolder(tmp_path))


def test_changed_code_makes_another_snapshot(tmp_path, copy):
    taken = [at(copy, tmp_path / "study").taken]
    for change in CHANGES.values():
        change(copy)
        taken.append(at(copy, tmp_path / "study").taken)
        assert code_in(taken[-1]) == code_in(copy)
    assert len(set(taken)) == 1 + len(CHANGES)
    for place in taken:
        check_snapshot(place)


def test_too_large_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "MAX_BYTES", 1 << 20)
    with pytest.raises(ConfigError) as refused:
        take_snapshot(GridFolder(tmp_path))
    largest = max(
        (PACKAGE.parent / name for name in code_in(PACKAGE.parent)),
        key=lambda path: path.stat().st_size,
    )
    [message] = str(refused.value).splitlines()
    assert " MiB, at most 1 are allowed. " in message
    assert f"The largest file is {largest} (" in message
    assert list(tmp_path.iterdir()) == []


def test_code_changed_during_the_copy_is_refused(tmp_path, copy, monkeypatch):
    monkeypatch.setattr(snapshot, "PACKAGE", copy / "furnace_hpc")
    source()
    edit(copy / "furnace_hpc/train.py")
    with pytest.raises(ConfigError, match="was changed while it was copied. Repeat the command"):
        take_snapshot(GridFolder(tmp_path / "study"))
    assert list((tmp_path / "study" / "code").iterdir()) == []


def test_clean_checkout_has_only_a_commit(tmp_path, checkout):
    said = at(checkout, tmp_path / "study")
    assert said.commit == facts_of(said.taken)["commit"] == git(checkout, "rev-parse", "HEAD")
    assert facts_of(said.taken)["untracked"] == []
    assert (said.taken / "changes.diff").read_text() == ""


def test_snapshot_facts_reproduce_the_code(tmp_path, checkout):
    edit(checkout / "furnace_hpc/train.py")
    (checkout / "furnace_hpc/config/ünknown file.py").write_text("X = 1\n")
    taken = at(checkout, tmp_path / "study").taken
    facts = facts_of(taken)
    assert facts["commit"] == git(checkout, "rev-parse", "HEAD") + "+dirty"
    assert facts["untracked"] == ["furnace_hpc/config/ünknown file.py"]
    again = tmp_path / "again"
    git(tmp_path, "clone", "--quiet", str(checkout), str(again))
    git(again, "apply", str(taken / "changes.diff"))
    for name in facts["untracked"]:
        shutil.copyfile(taken / name, again / name)
    assert code_in(again) == code_in(taken) == code_in(checkout)


def test_code_in_a_snapshot_has_the_same_hash(tmp_path, checkout):
    edit(checkout / "furnace_hpc/train.py")
    outside = at(checkout, tmp_path / "study")
    inside = at(outside.taken, tmp_path / "study")
    assert inside.commit == outside.commit == f"{git(checkout, 'rev-parse', 'HEAD')}+dirty"
    assert (inside.hashes, inside.taken) == (outside.hashes, outside.taken)
    check_snapshot(inside.taken)  # compiled files do not count as a change


@pytest.mark.parametrize("missing", ["program", "checkout"])
def test_snapshot_without_git_has_no_commit(tmp_path, checkout, missing):
    if missing == "checkout":
        shutil.rmtree(checkout / ".git")
        git(tmp_path, "init", "--quiet")
        git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "another project's, above")
    said = at(
        checkout,
        tmp_path / "study",
        PATH="/nowhere" if missing == "program" else os.environ["PATH"],
    )
    assert said.commit is facts_of(said.taken)["commit"] is None
    assert code_in(said.taken) == code_in(checkout)
    assert at(said.taken).commit is None


def test_checkout_that_others_can_write_is_refused(tmp_path, copy, monkeypatch):
    monkeypatch.setattr(snapshot, "PACKAGE", copy / "furnace_hpc")
    for number, part in enumerate(("", "furnace_hpc", "furnace_hpc/runs/code.py", "ds_configs")):
        place, mode = copy / part, (0o020, 0o002)[number % 2]
        place.chmod(place.stat().st_mode | mode)
        with pytest.raises(
            ConfigError, match="other users could change it: .* may be written"
        ) as error:
            take_snapshot(GridFolder(tmp_path / "study"))
        text = str(error.value)
        assert text.startswith(f"jobs run a copy of the code in {copy}, and other users"), part
        assert text.endswith(f"chmod -R go-w {copy}")
        assert not (tmp_path / "study").exists()
        copy.parent.chmod(0o775)
        with pytest.raises(ConfigError, match=r"\. Move the checkout, or .*: chmod [+]t"):
            take_snapshot(GridFolder(tmp_path / "study"))
        copy.parent.chmod(0o700)
        place.chmod(place.stat().st_mode & ~0o022)
    assert take_snapshot(GridFolder(tmp_path / "study")).is_dir()


def test_installed_package_is_part_of_the_python(tmp_path, copy, monkeypatch):
    monkeypatch.setattr(snapshot, "PACKAGE", copy / "furnace_hpc")
    monkeypatch.setattr(sys, "prefix", str(copy))
    copy.chmod(0o777)
    assert take_snapshot(GridFolder(tmp_path / "study")).is_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize(("owner", "is_trusted"), [(0, True), (65534, False)])
def test_checkout_of_root_or_another_user(copy, owner, is_trusted):
    """An administrator may have installed the code for all users."""
    for path in (copy, *copy.rglob("*"), *copy.parents):
        if path == copy or copy in path.parents:
            os.chown(path, owner, owner)
        elif path.stat().st_uid == 0:
            path.chmod(path.stat().st_mode | 0o011)
    script = "import os, sys; from furnace_hpc.runs import snapshot; os.setuid(1234)\n"
    script += "try: snapshot.source()\nexcept ValueError as error: sys.exit(str(error))"
    environment = CLEAN | {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == is_trusted, done.stderr
    assert is_trusted or "belongs to user" in done.stderr


def test_files_that_change_a_network_decide_results():
    """Results of another table of encoder families are stale."""
    for name in ("config/encoder_families.py", "config/own_code/arguments.py"):
        assert name in DECIDING
        assert (PACKAGE / name).is_file()
