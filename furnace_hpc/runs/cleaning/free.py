"""Delete files and folders. A folder is renamed first, so that none is half deleted in place."""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from furnace_hpc.runs.cleaning.plan import ToDelete
from furnace_hpc.runs.cleaning.sizes import FREED
from furnace_hpc.runs.folder import GridFolder


def free(folder: GridFolder, to_delete: Iterable[ToDelete]) -> Iterator[tuple[ToDelete, str]]:
    """Delete them one after the other. Yield each one, and the problem or an empty text.

    A folder is first renamed to `.freed-<name>.<8 hex digits>`. If a kill comes then, the next
    clean deletes it. Links are deleted, and never followed.
    """
    for one in to_delete:
        try:
            _delete(folder, one.path)
        except FileNotFoundError:  # another process has deleted it
            yield one, ""
        except OSError as error:
            yield one, f"{error.filename or one.path}: {error.strerror or error}"
        else:
            yield one, ""


def _delete(folder: GridFolder, path: Path) -> None:
    if not path.parent.resolve().is_relative_to(folder.path.resolve()):
        raise OSError(0, "leads out of the grid's folder through a link", str(path))
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    renamed = path
    if not FREED.fullmatch(path.name):
        renamed = path.with_name(f".freed-{path.name}.{os.urandom(4).hex()}")
        path.rename(renamed)
    shutil.rmtree(renamed)
