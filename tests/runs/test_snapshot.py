"""The code that runs: copied as it is at submit, named by its content, and never another one afterwards."""

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
from furnace_hpc.runs import snapshot
from furnace_hpc.runs.code import PACKAGE
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.snapshot import check_snapshot, source, take_snapshot

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
# Without what git, or who runs the tests, has set for Python and git.
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PYTHON"))
}
CLEAN |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


@pytest.fixture(autouse=True)
def _looks_anew():
    source.cache_clear()
    yield
    source.cache_clear()


def at(root: Path, *study: Path, **more: str) -> SimpleNamespace:
    """What the code in `root` says of itself, after it took a snapshot into the folder that is given."""
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
        shutil.copytree(
            PACKAGE.parent / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


@pytest.fixture
def checkout(copy) -> Path:
    (copy / ".gitignore").write_text("__pycache__\n")
    for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "all")):
        git(copy, *arguments)
    return copy


def code_in(root: Path) -> dict[str, str]:
    """Every file of package and DeepSpeed files with its hash."""
    found = {
        f"{part}/{name}": word for part in PARTS for name, word in tree(root / part).items() if word
    }
    return {name: word for name, word in found.items() if "__pycache__" not in name}


def facts_of(taken: Path) -> dict:
    return json.loads((taken / "snapshot.json").read_text())


def test_a_snapshot_is_what_is_there_now_byte_for_byte_and_read_only(tmp_path):
    taken = take_snapshot(GridFolder(tmp_path))
    assert code_in(taken) == code_in(PACKAGE.parent)
    assert {path.name for path in taken.iterdir()} == {*PARTS, "snapshot.json", "changes.diff"}
    files = [(taken / name).stat() for name in code_in(taken)]
    assert {file.st_mode & 0o777 for file in files} <= {
        0o444,
        0o440,
        0o400,
    }  # what the umask leaves of reading, and nothing else
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


def test_taken_twice_it_is_one_and_is_not_written_again(tmp_path):
    taken = take_snapshot(GridFolder(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in taken.rglob("*")}
    assert take_snapshot(GridFolder(tmp_path)) == taken
    assert {path: path.stat().st_mtime_ns for path in taken.rglob("*")} == before


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
def test_a_snapshot_that_was_changed_since_is_refused(tmp_path, change):
    taken = take_snapshot(GridFolder(tmp_path))
    CHANGES[change](taken)
    words = f"^code snapshot {taken} has been changed since it was taken. Move it away, and submit .* with --code new$"
    with pytest.raises(ConfigError, match=words):
        check_snapshot(taken)
    with pytest.raises(ConfigError, match=words):
        take_snapshot(GridFolder(tmp_path))


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_code_makes_another_snapshot(tmp_path, copy, change):
    first = at(copy, tmp_path / "study").taken
    CHANGES[change](copy)
    second = at(copy, tmp_path / "study").taken
    assert first != second
    assert code_in(second) == code_in(copy)
    check_snapshot(first)


def test_code_that_is_too_large_is_refused_in_one_sentence_and_leaves_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(snapshot, "MAX_BYTES", 1 << 20)
    with pytest.raises(ConfigError) as refused:
        take_snapshot(GridFolder(tmp_path))
    largest = max(
        (PACKAGE.parent / name for name in code_in(PACKAGE.parent)),
        key=lambda path: path.stat().st_size,
    )
    [message] = str(refused.value).splitlines()
    assert f" MiB, at most 1 are allowed. " in message
    assert f"The largest file is {largest} (" in message
    assert list(tmp_path.iterdir()) == []


def test_code_that_is_changed_while_it_is_copied_is_refused_and_leaves_nothing(
    tmp_path, copy, monkeypatch
):
    monkeypatch.setattr(snapshot, "PACKAGE", copy / "furnace_hpc")
    source()
    edit(copy / "furnace_hpc/train.py")
    with pytest.raises(
        ConfigError, match="was changed while it was copied. Repeat the command"
    ):
        take_snapshot(GridFolder(tmp_path / "study"))
    assert list((tmp_path / "study" / "code").iterdir()) == []


def test_a_clean_checkout_is_told_by_its_commit_alone(tmp_path, checkout):
    said = at(checkout, tmp_path / "study")
    assert said.commit == facts_of(said.taken)["commit"] == git(checkout, "rev-parse", "HEAD")
    assert facts_of(said.taken)["untracked"] == []
    assert (said.taken / "changes.diff").read_text() == ""


def test_commit_changes_and_untracked_files_make_the_code_again(tmp_path, checkout):
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


def test_within_a_snapshot_the_code_tells_the_commit_and_is_the_same_code(tmp_path, checkout):
    edit(checkout / "furnace_hpc/train.py")
    outside = at(checkout, tmp_path / "study")
    inside = at(outside.taken, tmp_path / "study")
    assert inside.commit == outside.commit == f"{git(checkout, 'rev-parse', 'HEAD')}+dirty"
    assert (inside.hashes, inside.taken) == (outside.hashes, outside.taken)
    check_snapshot(inside.taken)  # what Python compiled in it is no change


@pytest.mark.parametrize("missing", ["program", "checkout"])
def test_where_there_is_no_git_a_snapshot_has_no_commit(tmp_path, checkout, missing):
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
