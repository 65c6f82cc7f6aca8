"""Files with the features of a frozen encoder: a folder for each encoder and pack.

    features.json   written last: what the features were computed from, and their sizes
    <split>.npy     uint64 [N, 4]: part, first byte, number of tokens, and hash of each sample
    <n>.part        the features of samples, one after the other: tokens [T, H], then mask [T]
    <n>.rows        uint64 [5] for each sample of the part: split, row, first byte, tokens, hash

Each rank writes a part of its own. A sample without the modality has no tokens and is in no part.

N samples, or frames of clips. T tokens, H width of the encoder.
"""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import map_file, write_npy
from furnace_hpc.host.durable_files import sync, write_durably
from furnace_hpc.host.regular_file import check_regular, read_regular

DESCRIPTION = "features.json"
FORMAT = 1
# numpy has no bfloat16: its bits are stored as integers
STORED_AS: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}
Entries = NDArray[np.uint64]
Features = tuple[NDArray[Any], NDArray[np.uint8]]
"""Tokens [T, H] and mask [T] of a sample."""


class Layout(NamedTuple):
    """What all features of a folder have in common."""

    width: int
    dtype: str
    """A key of STORED_AS."""

    def num_bytes(self, tokens: int) -> int:
        """Bytes of a sample with so many tokens."""
        return tokens * (self.width * STORED_AS[self.dtype].itemsize + 1)

    def split(self, content: NDArray[np.uint8], tokens: int) -> Features:
        """Tokens and mask from the bytes of a sample."""
        values, mask = content[: len(content) - tokens], content[len(content) - tokens :]
        return values.view(STORED_AS[self.dtype]).reshape(tokens, self.width), mask


class PartWriter:
    """A context that appends features to a part. What was added is on the disk at its end."""

    def __init__(self, folder: Path, number: int) -> None:
        self._part = (folder / f"{number}.part").open("xb")
        self._rows = (folder / f"{number}.rows").open("xb")

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._part, self._rows):
            with file:
                file.flush()
                os.fsync(file.fileno())

    def add(self, split: int, row: int, tokens: NDArray[Any], mask: NDArray[np.uint8]) -> None:
        """Append the features of a sample."""
        values = np.ascontiguousarray(tokens).reshape(-1).view(np.uint8)
        content = np.concatenate([values, mask])
        entry = [split, row, self._part.tell(), len(mask), _hash(content, row)]
        # numpy pads nothing here, and a memory map of fp32 needs multiples of four bytes
        self._part.write(content.tobytes() + bytes(-len(content) % 8))
        self._rows.write(np.array(entry, dtype="<u8").tobytes())


def _hash(content: NDArray[np.uint8], row: int) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(content).data, seed=row)


def found_entries(folder: Path, sizes: Mapping[str, int], layout: Layout) -> dict[str, Entries]:
    """The entries of all parts, one for each sample: zeros where there are no whole features.

    Args:
        folder: of parts, which a stopped attempt may have left.
        sizes: split -> samples.
        layout: of the features.
    """
    entries = {split: np.zeros((size, 4), dtype=np.uint64) for split, size in sizes.items()}
    names = list(sizes)
    for number in part_numbers(folder):
        listed = (folder / f"{number}.rows").read_bytes()
        part = _map_part(folder / f"{number}.part")
        whole = len(listed) // 40 * 40  # the last line may be cut off
        for entry in np.frombuffer(listed[:whole], dtype="<u8").reshape(-1, 5).tolist():
            split, row, start, tokens, digest = entry
            content = part[start : start + layout.num_bytes(tokens)]
            if split < len(names) and row < sizes[names[split]] and _hash(content, row) == digest:
                entries[names[split]][row] = [number, start, tokens, digest]
    return entries


def part_numbers(folder: Path) -> list[int]:
    """The numbers of the parts in a folder."""
    names = [path.stem for path in folder.glob("*.rows")]
    return sorted(int(name) for name in names if name.isdigit())


def write_description(
    folder: Path, entries: Mapping[str, Entries], layout: Layout, source: Mapping[str, Any]
) -> None:
    """Write the index of each split and the description. The folder is then complete."""
    for split, found in entries.items():
        write_npy(folder / f"{split}.npy", found)
    longest = max((int(found[:, 2].max(initial=0)) for found in entries.values()), default=0)
    content = {
        "format": FORMAT,
        **layout._asdict(),
        "tokens": longest,
        "index": {split: _file_hash(folder / f"{split}.npy") for split in entries},
        "parts": {
            str(number): (folder / f"{number}.part").stat().st_size
            for number in part_numbers(folder)
        },
        "source": dict(source),
    }
    write_durably(folder / DESCRIPTION, json.dumps(content, indent=1).encode())
    sync(folder)


def _file_hash(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(read_regular(path, at_most=None))


class StoredFeatures:
    """The features of all splits in a complete folder.

    Raises:
        ConfigError: the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = json.loads(read_regular(folder / DESCRIPTION))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            self.layout = Layout(int(content["width"]), content["dtype"])
            self.tokens = int(content["tokens"])
            """Of the longest sample."""
            self._parts = {
                int(number): _whole_part(folder / f"{number}.part", size)
                for number, size in content["parts"].items()
            }
            self._entries = {
                split: _whole_index(folder / f"{split}.npy", digest)
                for split, digest in content["index"].items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"cached features {folder} are damaged ({error!r})") from None

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for part in self._parts.values())

    def take(self, split: str, rows: Iterable[int]) -> list[Features]:
        """The features of samples, as views of the files. Absent ones have no tokens.

        Raises:
            OSError: they are damaged. They are put aside, so that the next attempt computes them.
        """
        found, entries = [], self._entries[split]
        for row in rows:
            number, start, tokens, digest = entries[row].tolist()
            if not tokens:
                found.append(self.layout.split(np.empty(0, dtype=np.uint8), 0))
                continue
            content = self._parts[number][start : start + self.layout.num_bytes(tokens)]
            if _hash(content, row) != digest:
                raise self._damaged(split, row)
            found.append(self.layout.split(content, tokens))
        return found

    def _damaged(self, split: str, row: int) -> OSError:
        """Put the folder aside. The error counts as one that may pass."""
        with suppress(OSError):
            put_aside(self.folder)
        return OSError(
            errno.EIO,
            f"cached features of row {row} of split {split!r} differ from their hash. The next "
            "attempt computes them again",
            str(self.folder),
        )


def put_aside(folder: Path) -> None:
    """Rename a damaged folder, so that its features are computed again."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    folder.rename(aside)


def _whole_part(path: Path, size: int) -> NDArray[np.uint8]:
    part = _map_part(path)
    if len(part) != size:
        raise ValueError(f"{path.name} has {len(part)} bytes, wanted {size}")
    return part


def _map_part(path: Path) -> NDArray[np.uint8]:
    check_regular(path)
    if not path.stat().st_size:  # cannot be mapped
        return np.empty(0, dtype=np.uint8)
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def _whole_index(path: Path, digest: str) -> Entries:
    if _file_hash(path) != digest:
        raise ValueError(f"{path.name} differs from its hash")
    entries: Entries = map_file(path)
    if entries.dtype != np.uint64 or entries.ndim != 2 or entries.shape[1] != 4:
        raise ValueError(f"{path.name} is {entries.dtype} {entries.shape}")
    return entries
