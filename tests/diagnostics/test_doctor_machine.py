"""Checks of one machine: disks, versions, torch, the page, the job, and no Slurm."""

import json
import locale
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from test_doctor import PROFILE

from furnace_hpc.diagnostics import disk, node, slurm_info, this_machine
from furnace_hpc.diagnostics.report import (
    Check,
    Section,
    as_json,
    from_json,
    page,
    run_checks,
    worst,
)
from furnace_hpc.runs.trust import GROUP_ACCESS
from furnace_hpc.slurm.client import CommandResult

GIB = 2**30
MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
scratch@tcp:/s /scratch lustre rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/odd /with\\040space nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "level"),
    [
        ("/home/me/runs", "nfs4", "ok"),
        ("/scratch/x", "lustre", "ok"),
        ("/with space/x", "nfs", "ok"),
        ("/dev/shm/r", "tmpfs", "warn"),
        ("/srv/x", "ext4", "warn"),
    ],
)
def test_file_system_of_the_runs(path, kind, level):
    found = disk.mount_of(Path(path), MOUNTS)
    assert found[1] == kind
    assert disk.check_file_system(Path(path), found, on_slurm=True).level == level


Space = namedtuple("Space", "f_bavail f_frsize f_blocks f_files f_favail")


@pytest.mark.parametrize(
    ("free_bytes", "files", "free_files", "levels"),
    [
        (100 * GIB, 10**6, 10**6, ["ok", "ok"]),
        (5 * GIB, 10**6, 900, ["warn", "warn"]),
        (10**6, 10**6, 3, ["fail", "fail"]),
        (100 * GIB, 0, 0, ["ok", "ok"]),
    ],
)
def test_space_and_inodes(free_bytes, files, free_files, levels):
    facts_ = Space(free_bytes // 4096, 4096, 10**9, files, free_files)
    assert [check.level for check in disk.check_space(facts_)] == levels


QUOTA = """Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
 server:/home 9600000* 9000000 9500000       0   41000       0       0       0
 /dev/sdb1 100 5000000 6000000 0 190 200 210 0
 /dev/sdc1 100 0 0 0 10 0 0 0
"""


def test_quotas():
    full, files, none = disk.check_quotas(QUOTA)
    assert (full.level, full.found) == ("fail", "server:/home: 10 of 9 GB")
    assert (files.level, files.found) == ("warn", "/dev/sdb1: 0 of 5 GB, 190 of 200 files")
    assert (none.level, none.found) == ("ok", "/dev/sdc1: no limit")
    assert disk.check_quotas("")[0].level == disk.check_quotas(None)[0].level == "ok"


def test_a_runs_root_that_others_can_write(tmp_path):
    tmp_path.chmod(0o775)
    check = disk.check_permissions(tmp_path, tmp_path)
    assert (check.level, check.hint) == ("fail", f"chmod go-w {tmp_path}")
    new = disk.check_permissions(tmp_path / "new", tmp_path)
    assert new.level == "fail"
    assert new.found.startswith(
        f"{tmp_path} may be written by its group (mode 0775) and is not sticky"
    )
    assert f"chmod +t {tmp_path}, or chmod go-w {tmp_path}" in new.hint
    tmp_path.chmod(0o755)
    assert disk.check_permissions(tmp_path / "new", tmp_path).level == "ok"


def test_a_project_folder_that_the_group_can_write(tmp_path):
    """The group can replace runs/ of mode 0700 if the folder above has mode 2775."""
    runs = tmp_path / "project" / "runs"
    (runs / "study" / "submissions").mkdir(parents=True)
    runs.chmod(0o700)
    runs.parent.chmod(0o2775)
    check = disk.check_permissions(runs, runs)
    assert check.level == "fail"
    assert check.found.startswith(
        f"{runs.parent} may be written by its group (mode 2775) and is not sticky"
    )
    subprocess.run(["chmod", "+t", runs.parent], check=True)
    assert disk.check_permissions(runs, runs).found == f"{runs} can be written by you alone"


def test_grids_with_code_that_others_can_write(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    for name in ("code", "submissions"):
        (root / "study" / name).mkdir(parents=True)
    assert disk.check_permissions(root, root).level == "ok"
    (root / "study" / "code").chmod(0o775)
    check = disk.check_permissions(root, root)
    assert (check.level, check.hint) == ("fail", f"chmod go-w {root / 'study' / 'code'}")
    (root / "study").chmod(0o775)
    check = disk.check_permissions(root, root)
    assert check.found.startswith(f"{root / 'study'} may be written by its group")
    assert check.found.endswith("; and 1 more")
    subprocess.run(check.hint.split(), check=True)
    assert disk.check_permissions(root, root).found == f"{root} can be written by you alone"
    (root / "study").chmod(0o770)
    monkeypatch.setenv(GROUP_ACCESS, "1")
    assert (
        disk.check_permissions(root, root).found == f"{root} can be written by you and your group"
    )


def test_disk_speed_leaves_no_file(tmp_path):
    assert "MB/s" in disk.check_speed(tmp_path).found
    assert list(tmp_path.iterdir()) == []


def test_versions_that_are_not_the_pinned_ones():
    from importlib.metadata import version

    text = f"numpy=={version('numpy')}\n# words\npydantic==0.1  # old\nnot-installed-at-all==1\n"
    assert this_machine.differences(text) == ([f"pydantic {version('pydantic')} (wanted 0.1)"], 1)


def test_an_empty_hub_cache_and_an_open_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "token").write_text("hf_x")
    (tmp_path / "token").chmod(0o644)
    assert [check.level for check in this_machine.hub_cache()] == ["warn", "warn"]
    (tmp_path / "hub" / "models--google--bert").mkdir(parents=True)
    (tmp_path / "token").chmod(0o600)
    assert [(check.level, "google/bert" in check.found) for check in this_machine.hub_cache()] == [
        ("ok", True)
    ]


def test_a_check_that_raises_is_a_warning():
    def broken() -> Check:
        raise OSError("gone")

    section = run_checks("X", broken, lambda: Check("fine", "ok", "yes"))
    assert [check.level for check in section.checks] == ["warn", "ok"]


def test_a_command_that_hangs_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "quota").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "quota").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(disk, "QUOTA_TIMEOUT_S", 0.2)
    checks = run_checks("Disk", *disk.disk_checks(tmp_path, on_slurm=False)).checks
    assert [check.level for check in checks if check.name == "quotas"] == ["warn"]
    assert {"file system", "disk speed", "free space"} <= {check.name for check in checks}


def test_a_locale_that_does_not_exist(monkeypatch):
    real = locale.setlocale

    def without(category, wanted=None):
        if wanted in ("", "C.UTF-8"):
            raise locale.Error("unsupported locale setting")
        return real(category, wanted)

    monkeypatch.setattr(locale, "setlocale", without)
    monkeypatch.setenv("LC_ALL", "xx_XX")
    assert this_machine.text_encoding() == Check(
        "locale", "warn", "LC_ALL=xx_XX: this machine does not have it", "export LC_ALL=C.UTF-8"
    )


def test_a_job_without_srun(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    [section] = node.node_sections(PROFILE, tmp_path)
    assert (section.checks[0].level, section.checks[0].found) == (
        "fail",
        "srun cannot be started: No such file or directory",
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_runs_root_that_cannot_be_created(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o700)
    child = os.fork()
    if not child:
        code = 2
        try:
            for place in (tmp_path.parent, *tmp_path.parent.parents):
                place.chmod(place.stat().st_mode | 0o011)
            tmp_path.chmod(0o711)
            os.setuid(65534)
            root = tmp_path / "theirs" / "runs"
            checks = run_checks("Disk", *disk.disk_checks(root, on_slurm=False)).checks
            found = next(check for check in checks if check.name == "runs' root")
            code = 0 if found.level == "fail" and "you cannot write " in found.found else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_control_characters_are_escaped():
    text = page(
        [Section("Disk", (Check("file system", "ok", "nfs at /\x1b]0;x\x07y", "ask\x9b2J"),))],
        colour=False,
    )
    assert "\\x1b]0;x\\x07y" in text
    assert text.replace("\n", "").isprintable()


def test_page_and_json():
    long = Check("partition a-very-long-name"[:19], "fail", "words " * 40, "do this " * 20)
    sections = [Section("Slurm", (long, Check("fine", "ok", "yes")))]
    text = page(sections, colour=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\x1b[31mfail" in page(sections, colour=True)
    assert from_json(as_json(sections)) == sections
    assert worst(sections) == "fail"
    assert json.loads(as_json(sections))["counts"] == {"ok": 1, "warn": 0, "fail": 1}


@pytest.mark.parametrize(
    ("stderr", "level"),
    [
        (
            "srun: error: Unable to allocate resources: Immediate execution impossible, "
            "insufficient resources",
            "warn",
        ),
        ("srun: job 3 queued and waiting for resources\nbash: python: No such file", "fail"),
    ],
)
def test_a_job_without_output(monkeypatch, stderr, level):
    done = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(node.subprocess, "run", lambda *args, **kwargs: done)
    [section] = node.node_sections(PROFILE, Path("runs"))
    assert section.checks[0].level == level


def test_flags_of_the_job():
    wide = PROFILE.model_copy(
        update={"setup": ("module load x",), "account": "lab", "gpu_flag": "gres"}
    )
    command = node.srun_command(wide, Path("/r"))
    assert "-P" in command  # a torch.py in the working directory is not the node's torch
    assert {
        "--partition=a100",
        "--account=lab",
        "--gres=gpu:a100:1",
        "--time=5",
        "--immediate=60",
    } <= set(command)
    assert "module load x" in command[command.index("-c") + 1]
    assert not [
        part
        for part in node.srun_command(None, Path("/r"))
        if part.startswith(("--gres", "--gpus"))
    ]


def test_jobs_have_the_flags_that_a_site_requires():
    """Without them the site refuses the job, or starts it outside of the reservation."""
    flags = {"reservation": "big day", "licenses": "scratch:1", "exclusive": True, "gres": "nvme:1"}
    others = {"mail-user": "me", "begin": "now+1hour"}  # of the runs alone
    changes = {"sbatch": flags | others, "gpu_flag": "gres", "gpu_type": None, "partition": None}
    profile = PROFILE.model_copy(update=changes | {"constraint": "gpu"})
    assert node.profile_flags(profile) == [
        *("--constraint=gpu", "--exclusive", "--licenses=scratch:1", "--reservation=big day"),
        "--gres=gpu:1,nvme:1",
    ]
    profile = profile.model_copy(update={"gpu_flag": "gpus_per_node"})
    assert node.profile_flags(profile)[-3:] == [
        *("--licenses=scratch:1", "--reservation=big day", "--gpus-per-node=1")
    ]


def test_gpu_flags_are_tried_with_flags_of_the_site(monkeypatch):
    def test_only(script: str) -> CommandResult:
        scripts.append(script)
        if "#SBATCH --qos=gpu\n" not in script:
            return CommandResult(False, "", "allocation failure: Invalid qos specification")
        if "--gpus-per-task" in script:
            return CommandResult(False, "", "sbatch: unrecognized option '--gpus-per-task=1'")
        # nodes are drained: a temporary state
        return CommandResult(False, "", "allocation failure: Requested nodes are busy")

    scripts: list[str] = []
    monkeypatch.setattr(slurm_info.client, "test_only", test_only)
    profile = PROFILE.model_copy(
        update={"qos": "gpu", "sbatch": {"gres": "nvme:1", "comment": "#"}}
    )
    found = slurm_info.try_gpu_flags("a,b", 4, "a100", node.site_flags(profile))
    assert found == {
        "gpus_per_node": "",
        "gres": "",
        "gpus_per_task": "unrecognized option '--gpus-per-task=1'",
    }
    assert all("#SBATCH --partition=a,b\n" in script for script in scripts)
    assert all("#SBATCH '--comment=#'\n" in script for script in scripts)
    assert sum("#SBATCH --gres=gpu:a100:4,nvme:1\n" in script for script in scripts) == 1


def test_on_a_machine_without_slurm(tmp_path):
    """The real command without sbatch on PATH. The all-reduce really runs."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3").symlink_to(sys.executable)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM")
    } | {"PATH": str(tools)}
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.doctor",
        "--json",
        "--write-profile",
        "here",
        "--runs-root",
        "runs",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        c["name"]: c for section in json.loads(done.stdout)["sections"] for c in section["checks"]
    }
    assert found["gloo all-reduce"]["level"] == "ok"
    assert re.match(r"correct, 2 processes, \d+\.\d+ GB/s", found["gloo all-reduce"]["found"])
    assert found["sbatch"]["found"] == "not on PATH: runs wait in a queue on this machine"
    assert "executor: local" in (tmp_path / "slurm/clusters/here.yaml").read_text()
    assert not (tmp_path / "runs").exists()
