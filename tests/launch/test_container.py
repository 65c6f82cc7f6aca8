"""Ranks in a container: the profile's key, the arguments of both runtimes, and what is refused."""

import difflib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from batch_study import execute, stand_in
from login_study import grid, pack, planned, refused, write_grid

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import lifecycle
from furnace_hpc.host.container import start
from furnace_hpc.host.container.image import image_facts, image_kind
from furnace_hpc.host.portable import ENVIRONMENT
from furnace_hpc.launch.batch_script import follow_up_parameters
from furnace_hpc.launch.container import check_container, host_python
from furnace_hpc.launch.slurm_array import prepare

GOLDEN = Path(__file__).parents[1] / "support" / "golden"
RENEWS = os.environ.get("FURNACE_RENEW_GOLDEN") == "1"
SIF_HEAD = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + bytes(100)
SQUASHFS_HEAD = b"hsqs" + bytes(200)


def make_image(folder: Path, runtime: str = "apptainer") -> Path:
    """A file that looks like an image."""
    if runtime == "apptainer":
        image, head = folder / "torch.sif", SIF_HEAD
    else:
        image, head = folder / "torch.sqsh", SQUASHFS_HEAD
    image.write_bytes(head)
    image.chmod(0o644)
    return image


def container(tmp_path: Path, runtime: str = "apptainer", **more) -> dict:
    return {"image": str(make_image(tmp_path, runtime)), "runtime": runtime, **more}


def profile_of(content: dict, **more) -> ClusterProfile:
    return ClusterProfile(name="c", executor="slurm", container=content, **more)


def with_pyxis(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "--container-image=x"):
    """An srun whose help has this text."""
    (folder / "bin").mkdir()
    stand_in(folder / "bin" / "srun", f"echo '{text}'\n")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def row_of(folder: Path) -> dict:
    """A row of a submission, with folders that exist."""
    run_dir = folder / "runs" / "study" / "base-s0"
    code, data = folder / "runs" / "study" / "code" / "abc", folder / "data" / "tridigits"
    for path in (run_dir, code, data, folder / "place", folder / "scratch"):
        path.mkdir(parents=True)
    facts = {"data_dir": str(data)}
    return {"run_id": "base-s0", "run_dir": str(run_dir), "code": str(code), "facts": facts}


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_golden_arguments(tmp_path, monkeypatch, runtime):
    """Exactly these words start a rank. Those of pyxis were not tried on a real cluster."""
    for name in list(os.environ):
        if name.startswith((*start.PASSED, "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    row, weights = row_of(tmp_path), tmp_path / "weights"
    weights.mkdir()
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("FURNACE_SCRATCH", "$LOCAL")
    monkeypatch.setenv("LOCAL", str(tmp_path / "scratch"))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("NCCL_SECRET", "never shown")
    content = container(tmp_path, runtime, mounts=["/usr:/host-usr:ro", "/opt"], args=["--extra=1"])
    profile = profile_of(content, python="/opt/venv/bin/python")
    made = start.container_of(profile.model_dump(mode="json"))
    spec = {"config": {"model": {"text": {"pretrained": str(weights)}}}}
    shell = start.RunInContainer(made, row, spec).shell(3, ENVIRONMENT)
    words = shlex.split(shell.removeprefix("FURNACE_RANK=(").removesuffix(")\n"))
    digest = image_facts(content["image"])["sha256_of_ends"][:16]
    text = "\n".join([*words, ""])
    check_golden(runtime, text.replace(str(tmp_path), "/shared").replace(digest, "DIGEST"))


def check_golden(runtime: str, text: str) -> None:
    golden = GOLDEN / f"container-{runtime}.txt"
    if RENEWS:
        golden.write_text(text)
    lines = difflib.unified_diff(
        golden.read_text().splitlines(), text.splitlines(), "golden", "now", lineterm=""
    )
    assert not (found := list(lines)), "\n".join([*found, "FURNACE_RENEW_GOLDEN=1 renews it"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"image": "torch.sif", "runtime": "apptainer"}, "is not an absolute path"),
        ({"image": "/a/b:c.sif", "runtime": "apptainer"}, "contains ':'"),
        ({"image": "/a/b c.sif", "runtime": "apptainer"}, "contains ' '"),
        ({"image": "/a/b\nc.sif", "runtime": "apptainer"}, "contains '\\n'"),
        ({"image": "/a/b.sif", "runtime": "docker"}, "Input should be 'apptainer' or 'pyxis'"),
        ({"image": "/a/b.sif", "runtime": "pyxis"}, "a SIF image, which pyxis cannot start"),
        ({"image": "/a.sif", "runtime": "apptainer", "mounts": ["data"]}, "not an absolute path"),
        ({"image": "/a.sif", "runtime": "apptainer", "mounts": ["/a:/b:x"]}, "is not SOURCE"),
        (
            {"image": "/a.sif", "runtime": "apptainer", "args": ["--cleanenv"]},
            "args has --cleanenv",
        ),
    ],
)
def test_wrong_keys(content, problem):
    with pytest.raises(ValueError, match="container") as caught:
        profile_of(content)
    assert problem in str(caught.value)


def test_the_local_queue_has_no_container(tmp_path):
    with pytest.raises(ValueError, match="container needs executor: slurm"):
        ClusterProfile(name="c", executor="local", container=container(tmp_path))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda image, content: image.unlink(), "cannot be read: No such file"),
        (lambda image, content: image.write_bytes(b"text" * 20), "is no image, and apptainer"),
        (lambda image, content: image.chmod(0o666), "may be written by all users (mode 0666)"),
        (
            lambda image, content: content.update(mounts=["/nowhere/data"]),
            "container.mounts: /nowhere/data does not exist here",
        ),
    ],
    ids=["missing", "text", "open to all", "missing mount"],
)
def test_submit_refuses(tmp_path, damage, problem):
    """One clear line and exit code 2, before anything is written."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    content = container(tmp_path)
    damage(Path(content["image"]), content)
    profile = {"name": "c", "executor": "slurm", "gpu_flag": None, "container": content}
    (tmp_path / "c.yaml").write_text(json.dumps(profile))
    [line] = refused(tmp_path, "study.yaml", "--cluster", str(tmp_path / "c.yaml"), "--prepare")
    assert problem in line


def test_a_sif_image_under_a_name_of_pyxis(tmp_path):
    content = container(tmp_path, "pyxis")
    Path(content["image"]).write_bytes(SIF_HEAD)
    with pytest.raises(ConfigError, match="is a SIF image, and pyxis starts: squashfs"):
        check_container(profile_of(content), [])


def test_a_folder_that_cannot_be_mounted(tmp_path):
    with pytest.raises(ConfigError, match=r"runs,new contains ',', so it cannot be mounted"):
        check_container(profile_of(container(tmp_path)), [tmp_path / "runs,new"])


@pytest.mark.parametrize(("text", "fits"), [("--container-image=x", True), ("--nodes", False)])
def test_pyxis_is_looked_for_in_srun(tmp_path, monkeypatch, text, fits):
    with_pyxis(tmp_path, monkeypatch, text)
    profile = profile_of(container(tmp_path, "pyxis"))
    if fits:
        check_container(profile, [tmp_path])
        return
    with pytest.raises(ConfigError, match="this srun has no --container-image"):
        check_container(profile, [tmp_path])


def test_kinds_of_images(tmp_path):
    assert image_kind(str(make_image(tmp_path))) == "sif"
    assert image_kind(str(make_image(tmp_path, "pyxis"))) == "squashfs"
    assert image_kind(str(tmp_path)) == "folder"
    assert image_facts(str(tmp_path)).keys() == {"image", "mtime"}


def test_the_hash_sees_both_ends(tmp_path):
    image = tmp_path / "large.sif"
    image.write_bytes(SIF_HEAD + bytes(3 << 20))
    before = image_facts(str(image))
    for place in (0, image.stat().st_size - 1):
        with image.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        after = image_facts(str(image))
        assert after["sha256_of_ends"] != before["sha256_of_ends"]
        assert after["bytes"] == before["bytes"] == image.stat().st_size
        before = after


def test_the_batch_script_starts_the_container(tmp_path, monkeypatch):
    """Begin and decide stay outside. The record of the attempt has the image."""
    monkeypatch.chdir(tmp_path)
    content = container(tmp_path)
    done, run, submission, tools = execute(
        tmp_path, "done", 0, asked=portable_grid(), root="runs", container=content, python="/in/py"
    )
    assert (done.returncode, done.stderr) == (0, "")
    ranks = (tools / "ranks").read_text().splitlines()
    assert ranks[1:2] + ranks[3:6] == ["-S", "launch", "apptainer", "exec"]
    inside = ranks[ranks.index(content["image"]) :]
    assert inside[1] == "env"
    assert {f"FURNACE_RUN_DIR={run.path}", "FURNACE_ATTEMPT=1", "MKL_CBWR=COMPATIBLE"} <= {*inside}
    end = ["launch", "/in/py", "-u", "-m", "submitit.core._submit", str(submission)]
    assert inside[-len(end) :] == end
    record = lifecycle.read_attempt(str(run.path), 1)
    assert record["container"] == image_facts(content["image"])
    assert record["reason"] == "done"


def portable_grid():
    return grid(base={**grid().base, "portable": True})


def test_a_node_without_the_image_begins_no_run(tmp_path):
    content = container(tmp_path)
    done, run, _, tools = execute(
        tmp_path,
        "done",
        0,
        root="runs",
        container=content,
        meanwhile=lambda: Path(content["image"]).unlink(),
    )
    assert done.returncode == 1
    assert f"the container's image {content['image']} is missing on" in done.stderr
    assert not (tools / "ranks").exists()
    assert not run.attempt(1).exists()


@pytest.mark.parametrize("name", ["array", "train"])
def test_templates_start_the_container(tmp_path, name):
    content = container(tmp_path)
    profile = profile_of(content, gpu_flag=None, python="/in/py")
    plan = planned(tmp_path / "runs", grid(), profile)
    submission, tools = prepare(plan), tmp_path / "tools"
    tools.mkdir()
    stand_in(tools / "srun", 'printf "%s\\n" "$@" > "$STAND_IN/ranks"\n')
    for run in plan.to_do:
        lifecycle.write_spec(str(run.folder.path), run.spec.model_dump_json())
    place = {"array": str(submission.path), "train": submission.rows[0].run_dir}[name]
    variables = {n: v for n, v in os.environ.items() if not n.startswith("FURNACE_")} | {
        "SLURM_JOB_ID": "93",
        "SLURM_ARRAY_JOB_ID": "91",
        "SLURM_ARRAY_TASK_ID": "0",
        "FURNACE_PYTHON": sys.executable,
        "FURNACE_RANK": "planted",
        "PATH": f"{tools}:{os.environ['PATH']}",
        "STAND_IN": str(tools),
    }
    script = Path(__file__).parents[2] / "slurm" / f"{name}.sbatch"
    subprocess.run(["bash", str(script), place], cwd=tmp_path, env=variables, check=False)
    ranks = (tools / "ranks").read_text().splitlines()
    assert ranks[ranks.index("launch") + 1 :][:2] == ["apptainer", "exec"]
    assert ranks[-4:] == ["/in/py", "-u", "-m", "furnace_hpc.launch.rank_main"]


def test_jobs_without_ranks_use_the_python_of_the_host(tmp_path):
    profile = profile_of(container(tmp_path), python="/in/py")
    assert host_python(profile) == sys.executable
    assert host_python(profile.model_copy(update={"container": None})) == "/in/py"
    lines = follow_up_parameters(profile, "n", ["1"], tmp_path, tmp_path)["setup"]
    assert not any("apptainer" in line or "FURNACE_RANK" in line for line in lines)


def test_the_gpu_check_runs_in_the_image(tmp_path, monkeypatch):
    row = row_of(tmp_path)
    for runtime, starts in (("apptainer", "apptainer"), ("pyxis", None)):
        content = container(tmp_path, runtime)
        folder = tmp_path / runtime
        folder.mkdir()
        profile = profile_of(content, python="/in/py").model_dump_json()
        (folder / "profile.json").write_text(profile)
        words = start.python_of_check(str(folder), row, "python")
        if starts is None:
            assert words == []
            continue
        assert (words[0], words[-1], words[-words[::-1].index("env") - 2]) == (
            starts,
            "/in/py",
            content["image"],
        )
        assert "--nv" in words
    (tmp_path / "profile.json").write_text(
        ClusterProfile(name="c", executor="slurm").model_dump_json()
    )
    assert start.python_of_check(str(tmp_path), row, "python") == ["python"]


def test_folders_are_not_mounted_twice(tmp_path, monkeypatch):
    row = row_of(tmp_path)
    monkeypatch.chdir(tmp_path / "place")
    content = container(tmp_path, mounts=[str(tmp_path)])
    made = start.container_of(profile_of(content).model_dump(mode="json"))
    words = start.RunInContainer(made, row, {}).gpu_check()
    mounts = [word for word, before in zip(words[1:], words, strict=False) if before == "--bind"]
    assert [mount for mount in mounts if str(tmp_path) in mount] == [f"{tmp_path}:{tmp_path}"]
    assert words[words.index("--pwd") + 1] == str(tmp_path / "place")
