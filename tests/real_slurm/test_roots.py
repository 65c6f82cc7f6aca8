"""slurm/roots: Debian releases with other versions of Slurm. No test downloads one."""

import os
import subprocess
from pathlib import Path

import pytest

ROOTS = Path(__file__).parents[2] / "slurm" / "roots"


def roots(*arguments: str, place: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FURNACE_ROOTS": str(place)}
    return subprocess.run(
        [ROOTS, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_help_lists_every_command(tmp_path):
    done = roots("help", place=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("make 24.11", "run 24.11", "list", "remove 24.11", "--mirror URL"):
        assert command in done.stdout
    empty = roots(place=tmp_path)
    assert (empty.returncode, empty.stdout, empty.stderr) == (2, "", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("frob", "unknown command 'frob'"),
        ("make", "name a version of Slurm: "),
        ("make 19.05", "no release for Slurm '19.05'; known are "),
        ("make 24.11 --mirror", "--mirror takes a URL"),
        ("make 24.11 now", "unexpected 'now'"),
        ("run 24.11", "run takes a command"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="asks for root first")
def test_wrong_usage_of_roots_is_one_line(tmp_path, arguments, says):
    done = roots(*arguments.split(), place=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"roots: {says}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="asks for root first")
def test_a_missing_release_names_its_command(tmp_path):
    done = roots("run", "24.11", "true", place=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"roots: no release for Slurm 24.11 in {tmp_path}: run 'slurm/roots make 24.11' first\n"
    )


POLICY = """Package files:
 500 http://archive.ubuntu.com/ubuntu noble-security/main amd64 Packages
     release v=24.04,o=Ubuntu,a=noble-security,n=noble,l=Ubuntu,c=main,b=amd64
 500 http://archive.ubuntu.com/ubuntu noble/main amd64 Packages
     release v=24.04,o=Ubuntu,a=noble,n=noble,l=Ubuntu,c=main,b=amd64
"""
DEBIAN = """ 500 http://mirror.example/debian bookworm/main amd64 Packages
     release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=amd64
"""


@pytest.mark.parametrize(
    ("policy", "mirror"),
    [
        (POLICY, "http://deb.debian.org/debian"),
        (POLICY + DEBIAN, "http://mirror.example/debian"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="asks for root first")
def test_the_mirror_has_releases_of_debian(tmp_path, monkeypatch, policy, mirror):
    """Ubuntu's own mirror has none."""
    (tmp_path / "policy").write_text(policy)
    programs = {"apt-cache": f"cat {tmp_path}/policy", "debootstrap": 'echo "$@"; exit 1'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = roots("make", "24.11", place=tmp_path / "roots")
    assert done.returncode == 1
    assert f" trixie {tmp_path}/roots/24.11." in done.stderr
    assert done.stderr.endswith(f" {mirror}\n")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="asks for root first")
def test_a_command_runs_in_its_own_namespaces(tmp_path):
    """The folder of a release needs a shell. Here it has this machine's programs."""
    release = tmp_path / "24.11"
    for name in ("usr/sbin", "etc", "root", "tmp", "run"):
        (release / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (release / name).symlink_to(Path("/", name).readlink())
    script = 'mount --bind /usr "$1/usr" && exec "$2" run 24.11 sh -c "$3"'
    shown = "hostname; cut -d: -f1 /proc/net/dev | tail -n +3; pwd; python -c 'print(1)'; exit 7"
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(release), str(ROOTS), shown]
    environment = os.environ | {"FURNACE_ROOTS": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert done.returncode == 7, done.stderr
    assert lines[0] == "head"
    assert "lo" in lines
    assert "eth0" not in lines
    assert lines[-2:] == [str(ROOTS.parents[1]), "1"]
