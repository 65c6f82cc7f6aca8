"""The content of the wheel, and its commands in an environment without the clone."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from login_study import without_controller

from furnace_hpc.commands.demo import submit_arguments

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_has_all_shipped_files(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (
        ("experiments", "*.yaml"),
        ("ds_configs", "*.json"),
        ("slurm/clusters", "*.yaml"),
    ):
        files = list((ROOT / folder).glob(pattern))
        assert files
        assert {f"furnace_hpc/_shipped/{folder}/{file.name}" for file in files} <= names
    assert {
        "furnace_hpc/py.typed",
        "furnace_hpc/data/sets/tridigits/speech_bank.ogg",
        "furnace_hpc/data/sets/tridigits/speech_bank.json",
    } <= names
    pages = {
        f"furnace_hpc/tables/output/page/{path.name}"
        for path in (ROOT / "furnace_hpc" / "tables" / "output" / "page").iterdir()
        if path.is_file()
    }
    assert pages
    assert pages <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"furnace_hpc"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the installed wheel. It sees the packages of this one, not the clone."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=100)
    [packages] = place.glob("lib/python3*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install"]
    pip += ["--quiet", "--no-index", "--no-deps", "--no-compile", "--ignore-installed", str(wheel)]
    subprocess.run(pip, check=True, timeout=200, capture_output=True)
    return place


def furnace(installed: Path, cwd: Path, *words: str, **environment: str):
    """A command of the wheel in an empty folder."""
    cwd.mkdir(exist_ok=True)
    return subprocess.run(
        [installed / "bin" / "furnace", *words],
        cwd=cwd,
        env=without_controller(cwd.parent) | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def in_clone(cwd: Path, *words: str):
    cwd.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "furnace_hpc", *words],
        cwd=cwd,
        env=without_controller(cwd.parent),
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.parametrize(("grid", "runs"), [("ablation", 40), ("smoke", 3)])
@pytest.mark.parametrize("cluster", ["local", "a100"])
def test_a_dry_run_is_that_of_the_clone(installed, tmp_path, grid, runs, cluster):
    """The same runs and batch scripts. Places and the name of the snapshot differ.

    The snapshot of a clone has ds_configs/ beside the package, that of a wheel has it inside.
    """
    words = ["submit", "--grid", grid, "--cluster", cluster, "--dry-run"]
    words += ["--set", "portable=false"] * (cluster == "a100")
    ours = furnace(installed, tmp_path / "empty", *words)
    theirs = in_clone(tmp_path / "clone", *words)
    assert (ours.returncode, ours.stderr) == (0, "")
    assert f"{runs} runs ({runs} start) on {cluster}" in ours.stdout
    [package] = installed.glob("lib/python3*/site-packages/furnace_hpc")
    clone = theirs.stdout.replace(sys.executable, str(installed / "bin/python"))
    clone = clone.replace(str(ROOT / "furnace_hpc"), str(package))
    clone, wheels = (SNAPSHOT.sub("HASH", text) for text in (clone, ours.stdout))
    assert wheels.replace("/empty", "/clone").splitlines() == clone.splitlines()
    assert list((tmp_path / "empty").iterdir()) == []


SNAPSHOT = re.compile(r"(?<=code[ /])[0-9a-f]{12}\b")


def test_code_hash_is_that_of_the_clone(installed, tmp_path):
    """So runs of a wheel and of a clone are of the same code."""
    line = "from furnace_hpc.runs.code import code_hash; print(code_hash())"
    hashes = [
        subprocess.run(
            [python, "-P", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=200
        ).stdout
        for python in (installed / "bin/python", sys.executable)
    ]
    assert re.fullmatch(r"[0-9a-f]{12}\n", hashes[0])
    assert hashes[0] == hashes[1]


def test_demo_is_the_ablation(installed, tmp_path):
    done = furnace(installed, tmp_path / "empty", "demo", "--dry-run")
    assert done.returncode == 0, done.stderr
    first, *plan = done.stdout.splitlines()
    assert first.endswith("furnace submit --grid ablation --cluster local --dry-run")
    assert any("40 runs (40 start) on local" in line for line in plan)
    quick = furnace(installed, tmp_path / "empty", "demo", "--quick", "--dry-run")
    assert "4 runs (4 start) on local" in quick.stdout


def test_arguments_of_the_demo():
    assert submit_arguments(False, "local", False) == ["--grid", "ablation", "--cluster", "local"]
    arguments = submit_arguments(True, "devcluster", False)
    assert arguments[4:] == ["--seed", "0", "--set", "steps=20", "--wait", "--yes"]
    assert submit_arguments(False, "mine", False)[4:] == ["--wait"]


def test_devcluster_comes_with_the_wheel(installed, tmp_path):
    done = furnace(installed, tmp_path / "empty", "devcluster", "help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "furnace devcluster up " in done.stdout
    assert "slurm/devcluster" not in done.stdout
    for words in (("--help",), ("help",)):
        assert furnace(installed, tmp_path / "empty", "devcluster", *words).stdout == done.stdout
    wrong = furnace(installed, tmp_path / "empty", "devcluster", "up", "--nodes", "x")
    assert wrong.returncode == 2
    assert "--nodes takes a number of at least 1" in wrong.stderr
    nowhere = f"/tmp/no-cluster-{os.getpid()}"  # its path has a limit
    none = furnace(installed, tmp_path / "empty", "devcluster", "down", "--dir", nowhere)
    assert none.returncode == 1
    assert f"no cluster in {nowhere}" in none.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "words", [("demo", "--quick"), ("submit", "--grid", "smoke", "--cluster", "local")]
)
def test_the_wheel_trains_without_numba(installed, tmp_path, small_root, words):
    """librosa, numba and llvmlite compute features. Training packed data does not import them."""
    for name in ("librosa", "numba", "llvmlite"):
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text(f"raise ImportError({name!r})\n")
    empty, environment = tmp_path / "empty", {"FURNACE_DATA": str(small_root)}
    environment["PYTHONPATH"] = str(tmp_path / "blocked")
    done = furnace(installed, empty, *words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    name = "ablation" if words[0] == "demo" else "smoke"
    assert len(list(empty.glob(f"runs/{name}/*/result.json"))) == {"ablation": 4, "smoke": 3}[name]
    assert list(empty.glob(f"results/{name}*/table.md"))


def test_wheel_and_sdist_pass_twine(wheel, tmp_path):
    """The source archive builds the same wheel, and both have valid descriptions."""
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*command, ROOT], check=True, capture_output=True, timeout=120)
    [sdist] = tmp_path.glob("*.tar.gz")
    assert sdist.stat().st_size < 5_000_000
    check = [sys.executable, "-m", "twine", "check", "--strict", sdist, wheel]
    done = subprocess.run(check, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    [source] = [path for path in tmp_path.iterdir() if path.is_dir()]
    again = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*again, source], check=True, capture_output=True, timeout=120)
    [rebuilt] = tmp_path.glob("*.whl")
    assert contents(rebuilt) == contents(wheel)


def contents(wheel: Path) -> dict[str, int]:
    """File -> CRC of its content."""
    return {file.filename: file.CRC for file in zipfile.ZipFile(wheel).infolist()}
