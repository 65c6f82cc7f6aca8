"""The content of the wheel, and names that are found in it outside of a clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from login_study import without_controller

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


def test_a_shipped_grid_is_found_from_an_empty_folder(wheel: Path, tmp_path: Path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    command = [
        sys.executable,
        "-m",
        "furnace_hpc.submit",
        "--grid",
        "ablation",
        "--cluster",
        "a100",
        "--dry-run",
    ]
    environment = without_controller(tmp_path)
    environment |= {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=empty, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "40 runs (40 start) on a100" in done.stdout
    assert str(empty / "runs/ablation/code") in done.stdout
    assert list(empty.iterdir()) == []
