"""Kinds of damage to a checkpoint on a disk. Each function gets the folder of the ranks' files."""

import shutil
from collections.abc import Callable
from pathlib import Path

SHARDS = "*optim_states.pt"


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob(SHARDS))


def truncated(percent: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shard = _shards(folder)[-1]
        shard.open("r+b").truncate(shard.stat().st_size * percent // 100)

    return damage


def one_bit_flipped(folder: Path) -> None:
    """In its middle, which is some tensor."""
    shard = _shards(folder)[-1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def file_deleted(folder: Path) -> None:
    _shards(folder)[-1].unlink()


def model_deleted(folder: Path) -> None:
    sorted(folder.rglob("*model_states.pt"))[0].unlink()


def two_ranks_swapped(folder: Path) -> None:
    first, second = _shards(folder)[:2]
    aside = first.with_suffix(".aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def manifest_truncated(folder: Path) -> None:
    path = folder / "manifest.json"
    path.open("r+b").truncate(path.stat().st_size // 2)


def manifest_of_zeros(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(bytes(path.stat().st_size))


def manifest_deleted(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


OF_FILES: dict[str, Callable[[Path], None]] = {
    "truncated to nothing": truncated(0),
    "truncated to a half": truncated(50),
    "truncated to 99 %": truncated(99),
    "one bit flipped": one_bit_flipped,
    "a rank's file deleted": file_deleted,
    "the model's file deleted": model_deleted,
    "two ranks' files swapped": two_ranks_swapped,
    "emptied": emptied,
}
OF_MANIFEST: dict[str, Callable[[Path], None]] = {
    "manifest truncated": manifest_truncated,
    "manifest of zeros": manifest_of_zeros,
    "manifest deleted": manifest_deleted,
}
ALL = OF_FILES | OF_MANIFEST
