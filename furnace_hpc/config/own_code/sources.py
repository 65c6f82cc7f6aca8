"""The files of a grid's key `code`, and their hash."""

import hashlib
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.references import SECTIONS_OF_PATHS
from furnace_hpc.host.access import IF_UNCHANGED, find_faults
from furnace_hpc.host.regular_file import IrregularFile, read_regular

OWN_CODE = "own_code"  # folder of a code snapshot and of an exported model
LEFT_OUT = "__pycache__"
MAX_BYTES = 16 << 20  # larger: data or weights lie in the package by mistake
DIGITS = 12


@dataclass(frozen=True)
class OwnCode:
    """The files of a grid's own code as they are now."""

    entries: tuple[tuple[str, Path], ...]
    """(name below the folder of own code, file), in order of name: my_package/net.py."""
    sha256: str
    """12 hexadecimal digits of SHA-256 over names and contents."""

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """Name -> file."""
        return dict(self.entries)

    @cached_property
    def checked(self) -> dict[Any, Any]:
        """What `static_check` has found in these files, so that it reads them once for all rows."""
        return {}

    @property
    def packages(self) -> list[str]:
        """The names that `import` accepts."""
        return sorted({name.partition("/")[0].removesuffix(".py") for name in self.files})


def read_own_code(paths: Iterable[Path], source: str) -> OwnCode:
    """Read the packages and modules of a grid's key `code`.

    Args:
        paths: folders of packages, or single files `name.py`.
        source: the grid file, for errors.

    Raises:
        ConfigError: a path does not exist, cannot be imported, is too large, or other users could
            change it.
    """
    files: dict[str, Path] = {}
    for path in paths:
        real = path.resolve()
        where = f"{source}: code has {str(path)!r}"
        _check_name(real, where)
        _check_trusted(real)
        found = _files_below(real)
        if overlap := sorted(files.keys() & found.keys()):
            raise ConfigError(f"{where}, and {overlap[0]} is there twice. Rename one package")
        files |= found
    total = sum(path.stat().st_size for path in files.values())
    if total > MAX_BYTES:
        largest = max(files.values(), key=lambda path: path.stat().st_size)
        raise ConfigError(
            f"{source}: code has {total >> 20} MiB, at most {MAX_BYTES >> 20} are allowed. Move "
            f"what is not code out of it. The largest file is {largest}"
        )
    try:
        return OwnCode(tuple(sorted(files.items())), content_hash(files))
    except IrregularFile as error:
        raise ConfigError(f"{source}: code: {error}. Remove it from the package") from None


def files_of(folder: Path) -> dict[str, Path]:
    """Name -> file of a folder of own code: in a snapshot, or of an exported model."""
    found = [path for path in folder.rglob("*") if path.is_file() and _is_kept(path, folder)]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def content_hash(files: Mapping[str, Path]) -> str:
    """12 hexadecimal digits of SHA-256 over the names and contents of files."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = read_regular(path)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:DIGITS]


def _files_below(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {path.name: path}
    return {f"{path.name}/{name}": file for name, file in files_of(path).items()}


def _is_kept(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return not any(part == LEFT_OUT or part.startswith(".") for part in parts)


def _check_name(path: Path, where: str) -> None:
    """Raise ConfigError unless Python can import the path, and by no other package's name."""
    if not path.exists():
        raise ConfigError(f"{where}, which does not exist. Paths are relative to the grid file")
    name = path.name
    if path.is_file():
        name = path.stem
    is_module = path.is_dir() or path.suffix == ".py"
    if not is_module or not name.isidentifier():
        raise ConfigError(
            f"{where}, which Python cannot import. Give the folder of a package, or a file "
            f"NAME.py, whose name has only letters, digits and _"
        )
    taken = {*sys.stdlib_module_names, *SECTIONS_OF_PATHS, "furnace_hpc"}
    if name in taken or _is_installed(path, name):
        raise ConfigError(
            f"{where}, and the name {name!r} is taken or reserved. Rename your package"
        )
    if path.is_dir() and not any(path.glob("*.py")):
        raise ConfigError(f"{where}, which has no Python file. Give the folder of a package")


def _is_installed(path: Path, name: str) -> bool:
    """Whether a folder of installed packages has this name."""
    folders = [Path(folder) for folder in sys.path if folder.endswith("-packages")]
    if any(path.is_relative_to(folder) for folder in folders):
        return False
    return any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for folder in folders)


def _check_trusted(path: Path) -> None:
    """Raise ConfigError if other users could change the code, which runs as this user."""
    for fault in find_faults(str(path), str(path.parent), trust_root=True):
        fix = fault.fix.replace("Choose another place (--runs-root)", "Move the code")
        if fix.startswith(f"{IF_UNCHANGED}chmod"):
            fix = f"{IF_UNCHANGED}chmod -R go-w {shlex.quote(str(path))}"
        raise ConfigError(
            f"runs execute a copy of {path}, and other users could change it: {fault.problem}. "
            f"{fix}"
        )
