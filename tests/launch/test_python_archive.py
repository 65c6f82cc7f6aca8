"""A Python environment is archived once, and each node starts ranks from its own copy of it."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from batch_study import stand_in
from login_study import grid, planned

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import batch
from furnace_hpc.host.access import find_faults
from furnace_hpc.launch import python_archive
from furnace_hpc.launch.arrays import Limits, next_wave
from furnace_hpc.launch.python_archive import LINK, find_environment, make_archive
from furnace_hpc.launch.slurm_array import batch_text, prepare

SHOW = (
    "import json, mine, other, os, sys\n"
    "print(json.dumps([mine.__file__, other.__file__, sys.prefix, os.__file__]))"
)


@pytest.fixture
def python(tmp_path, monkeypatch) -> str:
    """The Python of a new environment with a package, and one of a linked folder."""
    monkeypatch.setattr(python_archive, "SYSTEM", (*python_archive.SYSTEM, sys.base_prefix))
    make_environment(tmp_path)
    return str(tmp_path / "env" / "bin" / "python")


def make_environment(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", symlinks=True)
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    linked = tmp_path / "modules" / "site-packages"
    linked.mkdir(parents=True)
    (site / "mine.py").write_text("")
    (linked / "other.py").write_text("")
    (site / "linked.pth").write_bytes(f"{linked}\n/nowhere/else\nimport sys\n".encode())
    (site / "package").mkdir()
    (site / "package" / "weights.pth").write_bytes(b"\x80\x02\r\n/usr\n")


def profile_of(tmp_path: Path, python: str) -> ClusterProfile:
    return ClusterProfile(
        name="c",
        executor="slurm",
        gpu_flag=None,
        python=python,
        scratch=str(tmp_path / "scratch"),
        stage_python=True,
    )


def launch(tmp_path: Path, python: str, archive: Path, **more: str) -> subprocess.Popen:
    """A rank, as the batch script starts it."""
    variables = {
        "FURNACE_PYTHON_ARCHIVE": str(archive),
        "FURNACE_SCRATCH": str(tmp_path / "scratch"),
    }
    command = ["/usr/bin/env", "python3", "-S", batch.__file__, "launch", python, "-c", SHOW]
    return subprocess.Popen(
        command,
        env=os.environ | variables | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ranks_start_from_one_copy(tmp_path, python):
    """Two ranks at the same time unpack it once. A later one finds it."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin" / "tar", f'echo x >> {tmp_path}/tars; exec /bin/tar "$@"\n')
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    archive = make_archive(python, tmp_path / "runs")
    ranks = [launch(tmp_path, python, archive, **path) for _ in range(2)]
    outputs = [rank.communicate(timeout=100) for rank in ranks]
    outputs.append(launch(tmp_path, python, archive, **path).communicate(timeout=100))
    copy = tmp_path / "scratch" / f"furnace-{os.getuid()}" / f"python-{archive.stem}"
    for output, errors in outputs:
        assert errors == ""
        *found, library = json.loads(output)
        assert all(place.startswith(f"{copy}/") for place in found), found
        assert library.startswith(sys.base_prefix)
    assert (tmp_path / "tars").read_text() == "x\n"
    [weights] = copy.rglob("weights.pth")
    assert weights.read_bytes() == b"\x80\x02\r\n/usr\n"
    assert not list(copy.parent.glob("*.tmp"))


def test_an_archive_is_made_once(tmp_path, python):
    """It is made again if a file changes."""
    first = make_archive(python, tmp_path / "runs")
    made_s = first.stat().st_mtime_ns
    assert make_archive(python, tmp_path / "runs") == first
    assert first.stat().st_mtime_ns == made_s
    [mine] = (tmp_path / "env").rglob("mine.py")
    mine.write_text("new = 1\n")
    assert make_archive(python, tmp_path / "runs") != first


@pytest.mark.parametrize("damage", ["cut", "no scratch", "open to all"])
def test_the_shared_python_is_the_fallback(tmp_path, python, damage):
    scratch, own = tmp_path / "scratch", tmp_path / "scratch" / f"furnace-{os.getuid()}"
    archive = make_archive(python, tmp_path / "runs")
    if damage != "no scratch":
        scratch.mkdir()
    if damage == "open to all":
        own.mkdir()
        own.chmod(0o777)
    if damage == "cut":
        archive.write_bytes(archive.read_bytes()[:5000])
    output, errors = launch(tmp_path, python, archive).communicate(timeout=100)
    assert errors.startswith(f"WARNING: python: started from {python}, not from a copy in")
    assert json.loads(output)[0].startswith(f"{tmp_path}/env/")


def test_the_batch_script_checks_and_names_the_archive(tmp_path, python):
    profile = profile_of(tmp_path, python)
    plan = planned(tmp_path / "runs", grid(), profile)
    submission = prepare(plan).path
    assert (submission / LINK).resolve().parent == (tmp_path / "runs" / ".python").resolve()
    [array] = next_wave(plan.shapes, Limits())
    lines = batch_text(plan, array, submission).splitlines()
    archive = f"{submission}/{LINK}"
    assert list(find_faults(archive, str(tmp_path / "runs"))) == []
    assert f"export FURNACE_PYTHON_ARCHIVE={archive}" in lines
    assert any(line.startswith("furnace_check ") and archive in line for line in lines)
    [srun] = [line for line in lines if line.startswith("srun ")]
    assert " python3 -S " in srun
    assert f" launch {python} -u -m submitit" in srun


def test_keys_that_do_not_fit():
    with pytest.raises(ValueError, match="stage_python needs scratch"):
        ClusterProfile(name="c", executor="slurm", stage_python=True)
    container = {"image": "/a.sif", "runtime": "apptainer"}
    with pytest.raises(ValueError, match="exclude each other"):
        ClusterProfile(
            name="c", executor="slurm", stage_python=True, scratch="/tmp", container=container
        )


def test_pythons_that_cannot_be_archived(tmp_path):
    with pytest.raises(ConfigError, match="does not start here"):
        find_environment(str(tmp_path / "nothing"))
    if Path("/usr/bin/python3").exists():
        with pytest.raises(ConfigError, match="is the system's own Python"):
            find_environment("/usr/bin/python3")


@pytest.mark.slow
def test_base_and_environment_move_together(tmp_path):
    """Also the standard library comes from the copy. The links and settings lead there."""
    (tmp_path / "scratch").mkdir()
    make_environment(tmp_path)
    python = str(tmp_path / "env" / "bin" / "python")
    if sys.base_prefix in python_archive.SYSTEM:
        pytest.skip("the base is the system's Python")
    archive = make_archive(python, tmp_path / "runs")
    output, errors = launch(tmp_path, python, archive).communicate(timeout=300)
    assert errors == ""
    places = json.loads(output)
    assert all(place.startswith(f"{tmp_path}/scratch/") for place in places), places
