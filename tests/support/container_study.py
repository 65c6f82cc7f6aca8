"""A small real image for Apptainer: a shell, some tools, and the libraries of this Python."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

OPENED_BY_NAME = (
    "libdl.so.2",
    "libgcc_s.so.1",
    "libsndfile.so.1",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "libutil.so.1",
)
TOOLS = ("bash", "env", "cat", "ls", "sleep", "mkdir", "touch", "hostname")


def apptainer_or_skip() -> str:
    """The folder with a real apptainer. The test is skipped without one."""
    place = os.environ.get("FURNACE_APPTAINER", "")
    found = shutil.which("apptainer", path=place or None)
    if found is None:
        pytest.skip("no apptainer: tests/support/get_apptainer.sh unpacks one")
    return str(Path(found).parent)


def python_folders() -> list[str]:
    """Folders of this Python and its packages."""
    folders = {sys.base_prefix, sys.prefix, *site.getsitepackages()}
    folders |= {str(path) for path in map(Path, sys.path) if path.name == "site-packages"}
    return sorted(folders)


def make_sandbox(folder: Path) -> Path:
    """A root folder with bash, a few tools, and the C libraries that this Python needs."""
    for name in ("bin", "usr/bin", "etc", "proc", "sys", "dev", "tmp", "var/tmp", "root"):
        (folder / name).mkdir(parents=True)
    programs = [Path(shutil.which(tool) or tool) for tool in TOOLS]
    python = [Path(sys.executable).resolve(), *_extensions()]
    for library in _libraries([*programs, *python]):
        _copy(library, folder / str(library).lstrip("/"))
        if library.name == "libsndfile.so.1":  # without ldconfig, soundfile looks for this name
            (folder / str(library.with_suffix("")).lstrip("/")).symlink_to(library.name)
    for program in programs:
        _copy(program, folder / "bin" / program.name)
    (folder / "usr/bin/env").symlink_to("/bin/env")
    (folder / "bin/sh").symlink_to("bash")
    for name in ("passwd", "group"):
        shutil.copy(Path("/etc") / name, folder / "etc" / name)
    (folder / "etc" / "made-for-a-test").touch()
    return folder


def make_image(apptainer: str, folder: Path) -> Path:
    """Build a SIF image of the sandbox."""
    sandbox, image = make_sandbox(folder / "sandbox"), folder / "image.sif"
    subprocess.run(
        [f"{apptainer}/apptainer", "-s", "build", str(image), str(sandbox)],
        env=os.environ | {"PATH": f"{apptainer}:{os.environ['PATH']}"},
        check=True,
    )
    image.chmod(0o644)
    return image


def _extensions() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib")) / "lib-dynload"
    return list(folder.glob("*.so"))


def _libraries(programs: list[Path]) -> set[Path]:
    """Libraries of the programs, and those that packages open by name, with what they need."""
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True)
    lines = [line for line in known.stdout.splitlines() if line.split()[0] in OPENED_BY_NAME]
    opened = [line.split()[-1] for line in lines]
    ldd = subprocess.run(["ldd", *map(str, programs), *opened], capture_output=True, text=True)
    words = [*opened, *ldd.stdout.split()]
    paths = {Path(word) for word in words if word.startswith("/") and ".so" in word}
    return {path for path in paths if path.is_file()}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), target)
