"""A colleague's files: refused as anybody's are, unless the profile says `group: true`. The other user is uid 65534."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from login_study import grid, planned
from test_batch_script import execute

from furnace_hpc.cluster.environment import scrubbed
from furnace_hpc.cluster.flags import rule_text
from furnace_hpc.cluster.profile import ClusterProfile
from furnace_hpc.cluster.submission import write_submission
from furnace_hpc.runs.trust import GROUP_ACCESS, check_trusted
from furnace_hpc.spec.errors import ConfigError

NOBODY, TEAM, STRANGERS = 65534, os.getgid(), 65533
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def theirs(tmp_path):
    """runs/grid/model.pt, made by a colleague with the umask of a group's runs."""
    file = tmp_path / "runs" / "grid" / "model.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    for path in (file.parent, file):
        os.chown(path, NOBODY, TEAM)
        path.chmod(0o770 if path.is_dir() else 0o660)
    return file


def test_what_a_colleague_wrote_is_loaded_where_the_profile_says_so_and_nowhere_else(theirs, monkeypatch):
    root = theirs.parent.parent
    root.chmod(0o755)
    with pytest.raises(ConfigError, match="belongs to user nobody"):
        check_trusted(theirs, root)
    monkeypatch.setenv(GROUP_ACCESS, "1")
    check_trusted(theirs, root)
    theirs.chmod(0o662)
    with pytest.raises(ConfigError, match="written by all users"):
        check_trusted(theirs, root)


def test_a_group_that_is_not_ones_own_is_no_colleague(theirs, monkeypatch):
    monkeypatch.setenv(GROUP_ACCESS, "1")
    os.chown(theirs, NOBODY, STRANGERS)
    with pytest.raises(ConfigError, match="belongs to user nobody"):
        check_trusted(theirs, theirs.parent)
    os.chown(theirs, 0, STRANGERS)  # one's own file, but strangers may write it
    with pytest.raises(ConfigError, match="written by its group"):
        check_trusted(theirs, theirs.parent)


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize(
    ("owner", "gid", "mode"),
    [
        (0, TEAM, 0o600),
        (0, TEAM, 0o660),
        (0, TEAM, 0o602),
        (0, STRANGERS, 0o600),
        (0, STRANGERS, 0o660),
        (NOBODY, TEAM, 0o660),
        (NOBODY, STRANGERS, 0o600),
    ],
)
def test_the_batch_script_and_the_ranks_decide_alike(tmp_path, monkeypatch, group, owner, gid, mode):
    file = tmp_path / "payload.pkl"
    file.write_bytes(b"x")
    os.chown(file, owner, gid)
    file.chmod(mode)
    monkeypatch.setenv(GROUP_ACCESS, "1" if group else "")
    try:
        check_trusted(file, tmp_path)
        trusted = True
    except ConfigError:
        trusted = False
    script = f"{rule_text()}\nfurnace_check {tmp_path} {file}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout == "", found.stderr) == (0 if trusted else 1, trusted, "")


def test_a_payload_that_was_planted_for_an_element_is_not_what_runs(tmp_path):
    def plant() -> None:
        [submission] = (tmp_path / "runs of 'mine'").glob("*/submissions/*")
        planted = submission / "91_2_submitted.pkl"
        planted.write_bytes(b"bomb")
        os.chown(planted, NOBODY, STRANGERS)

    done, _, submission, _ = execute(tmp_path, "done done", 0, meanwhile=plant)
    assert (done.returncode, done.stderr) == (0, "")
    copied = submission / "91_2_submitted.pkl"
    assert (copied.read_bytes(), copied.stat().st_uid) == (b"payload", 0)


def test_a_folder_of_submissions_in_which_others_can_write_takes_none(tmp_path):
    plan = planned(tmp_path, grid(), ClusterProfile(name="c", executor="local"))
    first = write_submission(plan).path
    first.parent.chmod(0o775)
    with pytest.raises(ConfigError, match=r"submissions may be written by its group.*chmod go-w"):
        write_submission(plan)
    assert list(first.parent.iterdir()) == [first]


def test_older_code_that_a_run_goes_on_with_is_looked_at_too(tmp_path):
    """The rows name another snapshot than the submission's own, as those of runs do that began before an edit."""
    older: list[Path] = []

    def go_on_with_older_code() -> None:
        [rows] = (tmp_path / "runs of 'mine'").glob("*/submissions/*/rows.jsonl")
        code = Path((rows.parent / "code").read_text().strip())
        older.append(code.with_name("0lder"))
        older[0].mkdir()
        (older[0] / "furnace_hpc.py").write_text("")
        (older[0] / "furnace_hpc.py").chmod(0o664)
        rows.write_text(rows.read_text().replace(f'/code/{code.name}"', '/code/0lder"'))

    done, run, _, tools = execute(tmp_path, "done done", 0, meanwhile=go_on_with_older_code)
    assert done.returncode == 1
    assert str(older[0] / "furnace_hpc.py") in done.stdout
    assert "Nothing of it is run" in done.stdout
    assert not (tools / "ranks").exists()
    assert stat.S_IMODE(run.attempt(1).stat().st_mode) == 0o600


def test_modules_in_the_working_directory_are_no_childs(tmp_path):
    """/tmp, say, where anybody can put a torch.py."""
    planted = tmp_path / "statistics.py"
    planted.write_text("raise SystemExit('planted')")
    script = (
        "import subprocess, sys; sys.argv = ['furnace', '--version']; from furnace_hpc.cli import furnace\n"
        "try: furnace()\n"
        "except SystemExit: sys.exit(subprocess.run([sys.executable, '-m', 'statistics']).returncode)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    child = [sys.executable, "-P", "-c", script]
    assert subprocess.run(child, cwd=tmp_path, env=kept, capture_output=True).returncode == 0
    bare = [sys.executable, "-m", "statistics"]
    assert subprocess.run(bare, cwd=tmp_path, env=kept, capture_output=True).stderr == b"planted\n"
    assert "PYTHONSAFEPATH" not in scrubbed({"PYTHONSAFEPATH": "1"})
