"""Files of a colleague (uid 65534) are refused unless the profile says `group: true`."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest
from batch_study import execute
from login_study import command, finish, grid, pack, planned, refused, specs, write_grid

import furnace_hpc
from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.host.access import GROUP_ACCESS
from furnace_hpc.launch.batch_script import check_function
from furnace_hpc.launch.follow_up import read_profile
from furnace_hpc.launch.local_progress import QueueProgress
from furnace_hpc.launch.local_queue import Queue, Slots
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.trust import check_place, check_trusted

OTHER_ID, TEAM, STRANGERS, LAB = 65534, os.getgid(), 65533, 4242
pytestmark = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can give a file to another user"
)


@pytest.fixture
def theirs(tmp_path):
    """Make runs/grid/model.pt, as a colleague with `group: true` would."""
    file = tmp_path / "runs" / "grid" / "model.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    for path in (file.parent, file):
        os.chown(path, OTHER_ID, TEAM)
        path.chmod(0o770 if path.is_dir() else 0o660)
    return file


def test_colleagues_file_needs_group_true(theirs, monkeypatch):
    root = theirs.parent.parent
    root.chmod(0o755)
    with pytest.raises(ConfigError, match=r"belongs to user \w+"):
        check_trusted(theirs, root)
    monkeypatch.setenv(GROUP_ACCESS, "1")
    check_trusted(theirs, root)
    theirs.chmod(0o662)
    with pytest.raises(ConfigError, match="written by all users"):
        check_trusted(theirs, root)


def test_foreign_group_is_never_trusted(theirs, monkeypatch):
    monkeypatch.setenv(GROUP_ACCESS, "1")
    os.chown(theirs, OTHER_ID, STRANGERS)
    with pytest.raises(ConfigError, match=r"belongs to user \w+"):
        check_trusted(theirs, theirs.parent)
    os.chown(theirs, 0, STRANGERS)  # an own file, but a foreign group may write it
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
        (OTHER_ID, TEAM, 0o660),
        (OTHER_ID, STRANGERS, 0o600),
    ],
)
def test_batch_script_and_ranks_decide_alike(tmp_path, monkeypatch, group, owner, gid, mode):
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
    script = f"{check_function()}\nfurnace_check {tmp_path} {file}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout == "", found.stderr) == (
        0 if trusted else 1,
        trusted,
        "",
    )


@pytest.fixture
def project(tmp_path):
    """Make a project folder of mode 2775. The other user is in its group."""
    place = tmp_path / "project"
    place.mkdir()
    os.chown(place, 0, LAB)
    place.chmod(0o2775)
    for above in (tmp_path, *tmp_path.parents):  # the other user must be able to get there
        if above.stat().st_uid == 0:
            above.chmod(above.stat().st_mode | 0o011)
    return place


def plant(project: Path, canary: Path) -> None:
    """As the other user, replace runs/ by a folder with other code."""
    [code] = (project / "runs").glob("study/code/*")
    planted = project / "runs" / code.relative_to(project / "runs") / "furnace_hpc" / "host"
    child = os.fork()
    if not child:
        os.setgroups([LAB])
        os.setgid(LAB)
        os.setuid(OTHER_ID)
        done = 1
        try:
            (project / "runs").rename(project / "old")
            planted.mkdir(parents=True)
            (planted / "batch.py").write_text(f"open({str(canary)!r}, 'w').write('planted')")
            for place in (project / "runs").rglob("*"):
                place.chmod(0o777)
            done = 0
        finally:
            os._exit(done)
    # the attack itself works
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("guarded", [True, False])
def test_local_queue_runs_no_planted_code(project, tmp_path, monkeypatch, guarded):
    project.chmod(0o755)
    monkeypatch.chdir(project)
    plan = planned(Path("runs"), grid(), ClusterProfile(name="c", executor="local"))
    submission = write_submission(plan)
    queue = Queue(plan, submission, Slots(1, 1, ()), cast(QueueProgress, None))
    project.chmod(0o2775)  # after the submission: the queue may work for days
    plant(project, canary := tmp_path / "canary")
    if not guarded:  # without the check the planted code runs
        monkeypatch.setattr(Queue, "_check", lambda *_: None)
        submission.path.mkdir(parents=True)  # the other user would do so too
        queue._start(0, 0)
        deadline_s = time.monotonic() + 60
        while not canary.exists() or canary.read_text() != "planted":
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        return
    with pytest.raises(
        ConfigError, match=f"{project} may be written by its group .mode 2775. and is not sticky"
    ):
        queue._start(0, 0)
    assert not canary.exists()
    assert not list((project / "runs").glob("study/*-s0-*"))


def test_batch_script_runs_no_planted_code(tmp_path):
    """The payload and the row's code are planted while the job is pending."""
    place, canary = tmp_path / "runs of 'mine'", tmp_path / "canary"

    def exchange() -> None:
        for above in (tmp_path, *tmp_path.parents):
            if above.stat().st_uid == 0:
                above.chmod(above.stat().st_mode | 0o011)
        os.chown(tmp_path, 0, LAB)
        tmp_path.chmod(0o2775)
        rows = next(place.glob("study/submissions/1/rows.jsonl"))
        content = rows.read_bytes()
        place.rename(tmp_path / "runs")
        plant(tmp_path, canary)
        (tmp_path / "runs").rename(place)
        rows.parent.mkdir(parents=True)  # read at the end of the test
        rows.write_bytes(content)

    done, run, _, tools = execute(tmp_path, "done", 0, meanwhile=exchange)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(
        f"furnace: {tmp_path} may be written by its group (mode 2775) and is not sticky"
    )
    assert "Nothing of it is run" in done.stdout
    assert not canary.exists()
    assert not run.path.exists()
    assert not (tools / "ranks").exists()


def test_batch_script_checks_again_before_decide(tmp_path):
    """Hours later, another user may have changed what it runs at its end."""
    done, run, _, tools = execute(tmp_path, "done", 0, then="chmod 2775 $STAND_IN/..")
    assert done.returncode == 1
    assert f"furnace: {tmp_path} may be written by its group (mode 2775)" in done.stdout
    assert (tools / "ranks").exists()
    assert lifecycle.read_attempt(str(run.path), 1)["end_unix_s"] is None


@pytest.mark.parametrize("mode", [0o2775, 0o777])
@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--prepare",)])
def test_submit_refuses_a_writable_place(project, mode, more):
    pack(project / "data" / "tridigits")
    project.chmod(mode)
    who = "its group" if mode == 0o2775 else "all users"
    write_grid(project)
    [line] = refused(project, "study.yaml", "--cluster", "local", *more)
    assert line.startswith(
        f"{project} may be written by {who} (mode {mode:04o}) and is not sticky: they could put any"
    )
    assert f"chmod +t {project}, or chmod go-w {project}" in line
    project.chmod(mode | 0o1000)
    done = command("submit", project, "--grid", "study.yaml", "--cluster", "local", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")


def test_trusted_group_may_own_the_project(project, monkeypatch):
    """With `group: true` the group can write the code anyway, so also folders above."""
    runs = project / "runs"
    runs.mkdir()
    monkeypatch.setattr(os, "getgroups", lambda: [LAB])
    with pytest.raises(
        ConfigError, match=r"or trust all of group 4242 \(group: true in the cluster profile\)"
    ):
        check_place(runs / "study", runs)
    monkeypatch.setenv(GROUP_ACCESS, "1")
    check_place(runs / "study", runs)
    os.chown(project, OTHER_ID, LAB)
    check_place(runs / "study", runs)
    os.chown(project, OTHER_ID, STRANGERS)
    with pytest.raises(ConfigError, match=r"belongs to user \w+, not to root: its owner could put"):
        check_place(runs / "study", runs)


def test_writable_profile_is_refused(tmp_path):
    submission = write_submission(
        planned(tmp_path, grid(), ClusterProfile(name="c", executor="slurm"))
    )
    assert read_profile(submission).name == "c"
    (submission.path / "profile.json").chmod(0o666)
    with pytest.raises(ConfigError, match="profile.json may be written by all users"):
        read_profile(submission)


def test_planted_payload_is_replaced(tmp_path):
    def plant() -> None:
        [submission] = (tmp_path / "runs of 'mine'").glob("*/submissions/*")
        planted = submission / "91_2_submitted.pkl"
        planted.write_bytes(b"bomb")
        os.chown(planted, OTHER_ID, STRANGERS)

    done, _, submission, _ = execute(tmp_path, "done done", 0, meanwhile=plant)
    assert (done.returncode, done.stderr) == (0, "")
    copied = submission / "91_2_submitted.pkl"
    assert (copied.read_bytes(), copied.stat().st_uid) == (b"payload", 0)


def test_writable_submissions_folder_is_refused(tmp_path):
    plan = planned(tmp_path, grid(), ClusterProfile(name="c", executor="local"))
    first = write_submission(plan).path
    first.parent.chmod(0o775)
    with pytest.raises(ConfigError, match=r"submissions may be written by its group.*chmod go-w"):
        write_submission(plan)
    assert list(first.parent.iterdir()) == [first]


def test_older_code_of_a_resumed_run_is_checked(tmp_path):
    """Rows of runs that began before an edit name an older snapshot than the submission."""
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


@pytest.mark.slow
def test_results_of_submit_are_private(tmp_path):
    """With a umask of 022, results of submit are private, and those of aggregate are not."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    write_submission(planned(tmp_path / "runs", grid()))
    for spec in specs():
        finish(spec, GridFolder(tmp_path / "runs" / "study"), code=code_hash())
    before = os.umask(0o022)
    try:
        done = command("submit", tmp_path, "--grid", "study.yaml", "--cluster", "local")
        assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr
        shown = command(
            "aggregate", tmp_path, "--grid", "study.yaml", "--out", "shown", "--no-figures"
        )
        assert shown.returncode == 0, shown.stderr
    finally:
        os.umask(before)

    def modes(folder: str) -> set[int]:
        return {
            stat.S_IMODE(path.stat().st_mode)
            for path in (tmp_path / folder, *(tmp_path / folder).rglob("*"))
        }

    assert modes("results") == {0o700, 0o600}
    assert modes("shown") == {0o755, 0o644}


def test_planted_profile_is_not_used(project, monkeypatch):
    """In a sticky folder another user can still add slurm/clusters/local.yaml."""
    project.chmod(0o3777)
    write_grid(project)
    clusters = project / "slurm" / "clusters"
    clusters.mkdir(parents=True)
    text = "name: local\nexecutor: local\nnodes: 1\nprocesses_per_node: 1\npython: /bin/false\n"
    (clusters / "local.yaml").write_text(text)
    for path in (project / "slurm", clusters, clusters / "local.yaml"):
        os.chown(path, OTHER_ID, LAB)
    done = command("submit", project, "--grid", "study.yaml", "--cluster", "local", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is in the working directory and is not trusted" in done.stderr
    assert "belongs to user" in done.stderr
    for path in (project / "slurm", clusters, clusters / "local.yaml"):
        os.chown(path, 0, 0)
    pack(project / "data" / "tridigits")
    assert (
        command(
            "submit", project, "--grid", "study.yaml", "--cluster", "local", "--dry-run"
        ).returncode
        == 0
    )


PRIVATE = """
import grp, os, pwd, sys
from furnace_hpc.host import access
me = pwd.struct_passwd(("sam", "x", 4300, 4300, "", "/", "/bin/sh"))
members = {4300: ("sam", []), 4301: ("team", ["sam"]), 4302: ("sam", ["eve"])}
pwd.getpwuid = lambda uid: me
grp.getgrgid = lambda gid: grp.struct_group((members[gid][0], "x", gid, members[gid][1]))
os.setgroups([4301, 4302]); os.setgid(4300); os.setuid(4300)
print(*("fault" if next(access.find_faults(path, path), None) else "fine" for path in sys.argv[1:]))
"""


def test_private_group_counts_as_the_user(tmp_path):
    """Many systems give each user a private group and a umask of 002. The users are faked."""
    places = []
    for gid in (4300, 4301, 4302):
        place = tmp_path / f"group {gid}"
        place.mkdir()
        os.chown(place, 4300, gid)
        place.chmod(0o775)
        places.append(place)
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == 0:
            above.chmod(above.stat().st_mode | 0o011)
    root = Path(furnace_hpc.__file__).parents[1]
    words = [sys.executable, "-S", "-c", PRIVATE, *map(str, places)]
    # with -S only the path finds the package
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["fine", "fault", "fault"], "")
