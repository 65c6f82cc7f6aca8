"""What `furnace doctor` says about a container: the probe in real, and its answers one by one."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics import container, node
from furnace_hpc.diagnostics.gpus import two_nodes
from furnace_hpc.diagnostics.report import Check

SIF_HEAD = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + bytes(100)


def profile_of(tmp_path: Path, runtime: str = "apptainer", **more) -> ClusterProfile:
    image = tmp_path / ("torch.sif" if runtime == "apptainer" else "torch.sqsh")
    image.write_bytes(SIF_HEAD if runtime == "apptainer" else b"hsqs" + bytes(100))
    content = {"image": str(image), "runtime": runtime}
    settings = {"python": "/in/py", "gpu_flag": None} | more
    return ClusterProfile(name="c", executor="slurm", container=content, **settings)


def answer(**changes) -> dict:
    """What the probe prints in an image with the packages of this machine."""
    names = [*container.IMPORTED, "numpy", "submitit"]
    usual = {
        "python": [3, 11, 7],
        "packages": {name: version(name) for name in names},
        "errors": {},
        "gpus": 0,
        "writable": True,
    }
    return usual | changes


def checks_of(found: dict, profile: ClusterProfile, root: Path) -> dict[str, Check]:
    done = subprocess.CompletedProcess([], 0, f"hello from the site\n{json.dumps(found)}\n", "")
    return {check.name: check for check in container.judge(done, 2.0, profile, root)}


def test_an_image_like_this_machine_is_ok(tmp_path):
    found = checks_of(answer(), profile_of(tmp_path), tmp_path)
    assert {check.level for check in found.values()} == {"ok"}
    assert found["apptainer"].found == "started the image; answered after 2 s"
    assert found["torch"].found == f"{version('torch')} in the image and here"


@pytest.mark.parametrize(
    ("changes", "name", "level", "text"),
    [
        ({"python": [3, 10, 1]}, "Python", "fail", "3.10.1"),
        ({"errors": {"deepspeed": "ImportError: x"}}, "deepspeed", "fail", "ImportError: x"),
        ({"packages": {"torch": "2.9.1", "deepspeed": "1"}}, "torch", "fail", "weights_only"),
        ({"packages": {"torch": "9.9", "deepspeed": "1"}}, "torch", "warn", "9.9 in the image"),
        (
            {"packages": {"torch": "9.9", "deepspeed": "1", "submitit": None}},
            "packages",
            "fail",
            "not in the image: submitit",
        ),
        (
            {"packages": {"torch": "9.9", "deepspeed": "1", "numpy": "0.1"}},
            "packages",
            "warn",
            "1 differ: numpy 0.1",
        ),
        (
            {"errors": {container.ENGINE: "OSError: no libsndfile.so"}},
            "engine",
            "fail",
            "OSError: no libsndfile.so",
        ),
        ({"writable": False}, "runs", "fail", "cannot be written inside"),
    ],
)
def test_each_problem(tmp_path, changes, name, level, text):
    check = checks_of(answer(**changes), profile_of(tmp_path), tmp_path)[name]
    assert (check.level, bool(check.hint)) == (level, True)
    assert text in check.found


@pytest.mark.parametrize(("count", "level"), [(None, "warn"), (0, "warn"), (1, "ok")])
def test_gpus_inside(tmp_path, count, level):
    profile = profile_of(tmp_path, gpu_flag="gres")
    assert checks_of(answer(gpus=count), profile, tmp_path)["GPUs"].level == level


def test_an_image_that_does_not_start(tmp_path):
    done = subprocess.CompletedProcess([], 255, "", "FATAL: could not open image\n")
    [check] = container.judge(done, 1.0, profile_of(tmp_path), tmp_path)
    assert (check.level, check.found) == ("fail", "FATAL: could not open image")


def test_a_missing_image_starts_no_job(tmp_path):
    profile = profile_of(tmp_path)
    (tmp_path / "torch.sif").unlink()
    [check] = container.container_section(profile, tmp_path).checks
    assert (check.level, "cannot be read: No such file" in check.found) == ("fail", True)


def test_the_probe_answers(tmp_path):
    """It runs here, with a module that is missing."""
    words = [sys.executable, "-c", container.PROBE, str(tmp_path), "json,nowhere", "numpy", "nope"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["python"] == list(sys.version_info[:3])
    assert found["packages"] == {"numpy": version("numpy"), "nope": None}
    assert found["errors"] == {"nowhere": "ModuleNotFoundError: No module named 'nowhere'"}
    assert (found["writable"], found["gpus"]) == (True, None)


def test_all_dependencies_are_compared():
    assert {"torch", "deepspeed", "submitit", "pydantic"} <= {*container.dependencies()}


def test_the_node_is_checked_by_the_host_python(tmp_path):
    command = node.srun_command(profile_of(tmp_path), tmp_path)
    assert sys.executable in command
    assert "/in/py" not in command


def test_setup_lines_run_before_apptainer(tmp_path):
    profile = profile_of(tmp_path, setup=("module load apptainer",), network_interface="ib0")
    command = container.probe_command(profile, tmp_path)
    script = command[command.index("-c") + 1]
    assert script.splitlines()[1:3] == [
        "export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0",
        "module load apptainer",
    ]
    assert command[command.index("doctor") + 1 :][:2] == ["apptainer", "exec"]
    assert f"{tmp_path}:{tmp_path}" in command


def test_under_pyxis_srun_starts_the_image(tmp_path):
    profile = profile_of(tmp_path, "pyxis", setup=("module load x",))
    command = two_nodes.srun_command(profile, tmp_path / "rendezvous")
    assert command[0] == "srun"
    assert f"--container-image={tmp_path}/torch.sqsh" in command
    assert command[-5:] == ["/in/py", "-P", "-m", two_nodes.MODULE, str(tmp_path / "rendezvous")]
