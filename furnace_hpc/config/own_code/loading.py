"""Import what an import path names, from the folder of own code and from nowhere else."""

import importlib
import sys
from pathlib import Path
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.references import Reference

_folders: list[Path] = []  # the folder in use, as the only entry
_packages: set[str] = set()  # the names that can be imported from it


def use_folder(folder: Path) -> None:
    """Let `load` import from this folder. Modules of another folder are forgotten."""
    folder = folder.resolve()
    for old in _folders:
        if old == folder:
            return
        _forget(old)
    _folders[:] = [folder]
    _packages.clear()
    _packages.update(entry.stem for entry in folder.iterdir())
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def folder_in_use() -> Path | None:
    """The folder that `load` imports from."""
    return _folders[0] if _folders else None


def load(reference: Reference) -> Any:
    """The class or function that a reference names.

    Raises:
        ConfigError: no folder is in use, another module has its name, or the import fails.
    """
    where = f"{reference.key} is {reference.path}"
    if not _folders:
        raise ConfigError(f"{where}, and no folder of own code is in use. Start it with Furnace")
    folder = _folders[0]
    _check_unused(reference.package, folder)
    try:
        module = importlib.import_module(reference.module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}, and its import fails: {error}. Install the package, or add it to code"
        ) from error
    if not _is_in(module, folder):
        raise ConfigError(
            f"{where}, and Python imported {getattr(module, '__file__', None)} instead of the file "
            f"in {folder}. Rename your package"
        )
    try:
        return getattr(module, reference.name)
    except AttributeError:
        raise ConfigError(
            f"{where}, and {module.__file__} has no {reference.name!r}. Correct the name"
        ) from None


def _check_unused(package: str, folder: Path) -> None:
    """Raise ConfigError if another module of this name has been imported already."""
    module = sys.modules.get(package)
    if module is not None and not _is_in(module, folder):
        raise ConfigError(
            f"a module {package!r} is imported already, from "
            f"{getattr(module, '__file__', None)}. Rename your package"
        )


def _forget(folder: Path) -> None:
    """Remove a folder from the path, and its modules."""
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    for name in list(sys.modules):
        if name.partition(".")[0] in _packages:
            del sys.modules[name]


def _is_in(module: Any, folder: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place and Path(place).resolve().is_relative_to(folder) for place in places)
