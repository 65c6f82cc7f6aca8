"""Ranks in a real Apptainer on a real Slurm. Without an apptainer the tests are skipped."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from container_study import apptainer_or_skip, make_image, python_folders
from slurm_cluster import Cluster, wait_until
from slurm_study import HERE, STAND_IN, Study
from test_slurm_train import RealStudy, calm_result

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
# Says where it runs, and becomes the stand-in.
INSIDE = """#!/bin/bash
case " $* " in
*" submitit.core._submit "*)
    printf '%s|%s|%s\\n' "$SLURM_PROCID" "$(ls /etc/made-for-a-test)" "$PYTHONNOUSERSITE" \\
        >> "$FURNACE_RUN_DIR/../inside" ;;
esac
"""


@pytest.fixture(scope="module")
def apptainer() -> str:
    return apptainer_or_skip()


@pytest.fixture(scope="module")
def image(apptainer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(apptainer, tmp_path_factory.mktemp("image"))


def container_profile(image: Path, apptainer: str, *setup: str) -> dict:
    mounts = [f"{folder}:{folder}:ro" for folder in (*python_folders(), str(HERE))]
    return {
        "container": {"image": str(image), "runtime": "apptainer", "mounts": mounts},
        "setup": [f"export PATH={apptainer}:$PATH", *setup],
    }


@pytest.fixture
def study(quiet: Cluster, tmp_path: Path, image: Path, apptainer: str) -> Study:
    """Its ranks are stand-ins that run in the image."""
    profile = container_profile(image, apptainer) | {"nodes": 2, "retries": 0}
    made = Study(quiet, tmp_path, variants=("ok", "waits", "crash"), profile=profile)
    stub = made.place / "python"
    stub.write_text(INSIDE + STAND_IN.format(python=sys.executable, here=HERE).partition("\n")[2])
    return made


def test_ranks_run_inside_and_stop_on_signals(study, image):
    """A time-limit signal reaches them. Begin, decide and the table stay on the host."""
    study.submitted()
    study.wait_for(done=1, running=1, failed=1)
    [record] = study.attempts("waits")
    assert study.cluster.run("scancel", "--signal=USR2", record["job_id"]).returncode == 0
    wait_until(lambda: len(study.attempts("waits")) == 2, 200, "attempt 2")
    (study.folder / "release").touch()
    study.wait_for(done=2, failed=1)
    wait_until(lambda: "reason" in study.attempts("waits")[-1], 60, "the end of attempt 2")
    first, second = study.attempts("waits")
    assert (first["reason"], second["reason"]) == ("stopped", "done")
    assert first["error"] == "stopped by SIGUSR2"
    assert second["container"]["image"] == str(image)
    assert second["container"]["bytes"] == image.stat().st_size
    assert study.attempts("crash")[0]["error"] == "ValueError: on purpose"
    lines = (study.folder / "inside").read_text().splitlines()
    assert len(lines) >= 7  # four attempts with two ranks, of which one may end the other early
    assert {line.split("|", 1)[1] for line in lines} == {"/etc/made-for-a-test|1"}
    assert not Path("/etc/made-for-a-test").exists()


def test_signals_while_the_image_starts(study):
    """A rank that runs handles them. Slurm may end a step whose ranks do not run yet."""
    study.submitted("--variant", "waits")
    wait_until(lambda: list(study.folder.glob("waits*/attempts/1.json")), 100, "attempt 1")
    job_id = study.attempts("waits")[0]["job_id"]

    def stopped() -> bool:
        study.cluster.run("scancel", "--signal=TERM", job_id)
        return "reason" in study.attempts("waits")[0]

    wait_until(stopped, 100, "the end of attempt 1")
    first = study.attempts("waits")[0]
    assert first["error"] == "stopped by SIGTERM" or first["reason"] == "infrastructure", first
    (study.folder / "release").touch()
    study.wait_for(done=1)


@pytest.mark.distributed
def test_training_inside_has_the_bits_of_the_host(
    quiet: Cluster, tmp_path: Path, small_root: Path, image: Path, apptainer: str
):
    shutil.copytree(small_root, tmp_path / "data")
    setup = "export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1"
    profile = container_profile(image, apptainer, setup) | {"python": sys.executable}
    study = RealStudy(quiet, tmp_path, profile=profile)
    study.submitted("--variant", "first")
    study.wait_for(done=1)
    inside = study.result("first")
    assert inside["versions"]["image"].startswith(str(image))
    [result] = study.folder.glob("first*/result.json")
    assert result.stat().st_mode & 0o777 == 0o600
    outside = calm_result(tmp_path)
    assert inside["parameters_sha256"] == outside["parameters_sha256"]
    assert "image" not in outside["versions"]


def test_doctor_starts_the_image(quiet: Cluster, tmp_path: Path, image: Path, apptainer: str):
    profile = container_profile(image, apptainer) | {
        "name": "dev",
        "executor": "slurm",
        "gpu_flag": None,
        "python": sys.executable,
    }
    (tmp_path / "dev.yaml").write_text(yaml.safe_dump(profile))
    (tmp_path / "runs").mkdir(mode=0o700)
    words = (sys.executable, "-m", "furnace_hpc.doctor", "--cluster", "dev.yaml", "--json")
    done = quiet.run(*words, cwd=tmp_path, timeout_s=300)
    sections = {s["title"]: s["checks"] for s in json.loads(done.stdout)["sections"]}
    found = {check["name"]: check for check in sections["Container"]}
    levels = {name: check["level"] for name, check in found.items()}
    expected = ("image", "apptainer", "Python", "torch", "deepspeed", "packages")
    assert levels == dict.fromkeys(expected, "ok"), found
    assert found["torch"]["found"].endswith("in the image and here")
