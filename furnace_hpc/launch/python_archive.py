"""Archive the ranks' Python environment once, so that each node reads one large file.

A job of 64 nodes with 8 ranks would otherwise open thousands of small files 512 times on the shared
file system. The archive's name is a hash of the paths, sizes and times of all its files.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host.durable_files import replaced_file
from furnace_hpc.host.local_python.unpack import FACTS, HERE
from furnace_hpc.launch.grids.messages import show_message

FOLDER = ".python"  # in the runs root
LINK = "python.tar"  # in a submission
SYSTEM = ("/usr", "/usr/local", "/")  # on each node's own disk already
SITE = ("site-packages", "dist-packages")
ASK = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix, sys.executable, sys.path]))"
ASK_S = 60


@dataclass(frozen=True)
class Environment:
    """The folders of a Python environment, and their names in the archive."""

    executable: Path
    parts: dict[Path, str]
    left_out: frozenset[Path] = frozenset()

    def name(self, path: Path) -> str | None:
        """The name of a path in the archive. None if it is in none of the parts."""
        for folder, part in self.parts.items():
            if path.is_relative_to(folder):
                return str(part / path.relative_to(folder))
        return None


def link_archive(profile: ClusterProfile, root: Path, submission: Path) -> None:
    """Make the archive of the profile's Python unless it exists, and link it to a submission.

    Args:
        profile: nothing is done unless it stages Python.
        root: the runs root.
        submission: folder of the submission.

    Raises:
        ConfigError: the Python does not start, or is the system's own.
    """
    if profile.stage_python:
        archive = make_archive(profile.python or sys.executable, root)
        (submission / LINK).symlink_to(os.path.relpath(archive, submission))


def make_archive(python: str, root: Path) -> Path:
    """Return the archive of this Python's environment. Make it unless it exists."""
    environment = find_environment(python)
    entries = sorted(_entries(environment))
    key = _key(environment, entries)
    archive = root.resolve() / FOLDER / f"{key}.tar"
    if not archive.exists():
        archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        show_message(f"archiving {len(entries):,} files of {python} for the nodes ...")
        _write(environment, entries, archive)
    return archive


def find_environment(python: str) -> Environment:
    """Ask a Python for its folders: of the environment, of its base, and of linked packages."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", ASK], capture_output=True, text=True, timeout=ASK_S, check=True
        )
        prefix, base, executable, places = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"stage_python: {python} does not start here ({error}). Set python in the profile to "
            f"the Python of the ranks"
        ) from None
    if prefix in SYSTEM:
        raise ConfigError(
            f"stage_python: {python} is the system's own Python, which each node has. Make an "
            f"environment for Furnace, or remove stage_python"
        )
    parts, left_out = {Path(prefix): "env"}, set[Path]()
    if base != prefix and base not in SYSTEM:
        parts[Path(base)] = "base"
        used = set(map(Path, places))
        left_out = {path for name in SITE for path in Path(base).glob(f"lib/*/{name}")} - used
        left_out |= set(Path(base).glob("lib/python3*/test"))
    for place in map(Path, places):
        is_known = any(place.is_relative_to(folder) for folder in (*parts, *map(Path, SYSTEM[:2])))
        if place.name in SITE and place.is_dir() and not is_known:
            parts[place] = f"site{len(parts)}"
    return Environment(Path(executable), parts, frozenset(left_out))


def _entries(environment: Environment) -> Iterator[tuple[str, str]]:
    """(name in the archive, path) of all files and links."""
    for folder, part in environment.parts.items():
        for here, folders, files in os.walk(folder):
            place = Path(here)
            folders[:] = [name for name in folders if place / name not in environment.left_out]
            inner = place.relative_to(folder)
            links = [name for name in folders if (place / name).is_symlink()]
            for name in (*files, *links):
                yield str(part / inner / name), str(place / name)


def _key(environment: Environment, entries: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256(str(environment.executable).encode())
    for name, path in entries:
        facts = os.lstat(path)
        digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_mode}\n".encode())
    return digest.hexdigest()[:16]


def _write(environment: Environment, entries: list[tuple[str, str]], archive: Path) -> None:
    rewritten = list[str]()
    with (
        replaced_file(archive, durable=False) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in entries:
            if Path(path).name == "pyvenv.cfg" and name == "env/pyvenv.cfg":
                text = _moved_home(environment, Path(path).read_text(encoding="utf-8"))
                rewritten.append(name)
                _add_text(tar, name, text)
            elif _names_folders(Path(path)):
                _add_text(tar, name, _moved_paths(environment, name, Path(path)))
            else:
                _add(environment, tar, name, Path(path))
        executable = environment.name(environment.executable)
        _add_text(tar, FACTS, json.dumps({"executable": executable, "rewrite": rewritten}))


def _add(environment: Environment, tar: tarfile.TarFile, name: str, path: Path) -> None:
    """Add a file or a link. An absolute link into a part becomes a relative one."""
    facts = tar.gettarinfo(str(path), name)
    if facts.issym() and facts.linkname.startswith("/"):
        target = environment.name(Path(facts.linkname))
        if target:
            facts.linkname = os.path.relpath(target, Path(name).parent)
    if facts.isreg():
        with path.open("rb") as file:
            tar.addfile(facts, file)
    else:
        tar.addfile(facts)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    facts, content = tarfile.TarInfo(name), text.encode(errors="surrogateescape")
    facts.size = len(content)
    tar.addfile(facts, io.BytesIO(content))


def _names_folders(path: Path) -> bool:
    """Whether Python reads folders from this file. Packages have other files named .pth."""
    return path.suffix == ".pth" and path.parent.name in SITE and not path.is_symlink()


def _moved_home(environment: Environment, text: str) -> str:
    """The settings of a virtual environment whose base is in the archive too."""

    def moved(match: re.Match[str]) -> str:
        name = environment.name(Path(match[2].strip()))
        return f"{match[1]}{HERE}/{name}" if name else match[0]

    return re.sub(r"^(home\s*=\s*)(.+)$", moved, text, flags=re.MULTILINE)


def _moved_paths(environment: Environment, name: str, path: Path) -> str:
    """A .pth file whose folders in the archive are relative paths."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        target = environment.name(Path(line)) if line.startswith("/") else None
        lines.append(os.path.relpath(target, Path(name).parent) if target else line)
    return "\n".join([*lines, ""])
