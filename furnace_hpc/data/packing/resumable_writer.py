"""Write a pack so that it can be resumed after a kill at any point.

Chunks are appended to `<out>.packing/columns/`, and `progress.json` records the valid length. At
the next start, bytes after this length are cut off. So the final bytes do not depend on
interruptions.
"""

import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import StoredFile
from furnace_hpc.data.columns import write_header
from furnace_hpc.data.jpeg_images import file_hash
from furnace_hpc.data.packing.rendering import Rendered
from furnace_hpc.data.packing.sample import PackPlan, Values
from furnace_hpc.data.packing.statistics import Moments
from furnace_hpc.host.durable_files import replace_file, sync, synced_file
from furnace_hpc.host.regular_file import read_regular


@dataclass
class PackProgress:
    """The progress of a pack, as stored in `progress.json`."""

    settings: dict[str, Any]
    rows: dict[str, int]
    """split -> rendered rows, including refused ones."""
    kept: dict[str, int]
    """split -> samples in the columns."""
    incomplete: dict[str, int]
    """split -> rows with at least one refusal."""
    refused_bytes: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    jpeg_bytes: dict[str, int] = field(default_factory=dict)
    """split -> bytes of its JPEG files. Empty if images are stored as pixels."""

    def after(self, chunk: Rendered, num_kept: int) -> "PackProgress":
        """Return the progress when also this chunk is in the columns."""

        def more(counts: dict[str, int], number: int) -> dict[str, int]:
            return counts | {chunk.split: counts[chunk.split] + number}

        moments = dict(self.moments)
        for modality, found in chunk.moments.items():
            before = moments.get(modality)
            moments[modality] = before.plus(found) if before else found
        return replace(
            self,
            rows=more(self.rows, chunk.num_rows),
            kept=more(self.kept, num_kept),
            incomplete=more(self.incomplete, chunk.incomplete),
            refused_bytes=self.refused_bytes + len(chunk.refused_lines),
            moments=moments,
            jpeg_bytes=self.jpeg_bytes and more(self.jpeg_bytes, len(chunk.jpeg)),
        )


class ResumableWriter:
    """The folder beside `out` in which a pack grows."""

    def __init__(self, out: Path, plan: PackPlan) -> None:
        self.folder = out.with_name(f"{out.name}.packing")
        self.columns = self.folder / "columns"
        self.refused = self.columns / "refused.jsonl"
        self._plan = plan
        fresh = dict.fromkeys(plan.rows, 0)
        self.progress = PackProgress(plan.settings, fresh, dict(fresh), dict(fresh))
        if plan.jpeg:
            self.progress.jpeg_bytes = dict(fresh)
        self._files: dict[Path, int] = {}
        self._lock = -1

    def begin(self, *, force: bool) -> None:
        """Lock the folder, and resume from `progress.json` or start a new pack.

        Raises:
            ConfigError: another process uses the folder, or it was started with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"folder {self.folder} is being packed by another process: wait for it"
            ) from None
        begun = None
        if self.columns.is_dir():
            begun = _read(self.folder / "progress.json")
        if begun and begun.settings == self._plan.settings:
            self.progress = begun
        elif begun and not force:
            raise self._other_settings(begun.settings)
        else:
            shutil.rmtree(self.columns, ignore_errors=True)
        for split in self._plan.rows:
            (self.columns / split).mkdir(parents=True, exist_ok=True)
            for name, value in self._plan.stored.items():
                self._open(split, name, value)
            if self._plan.jpeg:
                blob = self._jpeg_file(split)
                self._files[blob] = _open_at(blob, self.progress.jpeg_bytes[split])
        self._files[self.refused] = _open_at(self.refused, self.progress.refused_bytes)
        self.record()

    def _other_settings(self, begun: dict[str, Any]) -> ConfigError:
        settings = self._plan.settings
        keys = [key for key in settings if begun.get(key) != settings[key]]
        return ConfigError(
            f"folder {self.folder} holds an unfinished pack with other settings "
            f"({', '.join(keys) or 'fewer now'}): finish it with those, delete it, or give --force"
        )

    def _open(self, split: str, name: str, value: np.ndarray[Any, Any]) -> None:
        path = self.columns / split / f"{name}.npy"
        if not path.exists():
            with path.open("wb") as file:
                _header(file, value, 0)
        start = _header_bytes(path)
        self._files[path] = _open_at(path, start + self.progress.kept[split] * value.nbytes)

    def _jpeg_file(self, split: str) -> Path:
        return self.columns / split / "image.jpeg"

    def append(self, chunk: Rendered) -> None:
        """Append the kept samples of the next rows. After an OSError nothing is added."""
        num_kept = 0
        if chunk.columns:
            num_kept = len(chunk.columns["sample_id"])
        parts = {
            self.columns / chunk.split / f"{name}.npy": array.reshape(-1).view(np.uint8)
            for name, array in self._shifted(chunk).items()
        }
        if self._plan.jpeg:
            parts[self._jpeg_file(chunk.split)] = np.frombuffer(chunk.jpeg, np.uint8)
        parts[self.refused] = np.frombuffer(chunk.refused_lines, np.uint8)
        ends = {path: os.lseek(self._files[path], 0, os.SEEK_CUR) for path in parts}
        try:
            for path, content in parts.items():
                _write_all(self._files[path], content.data)
        except OSError:
            for path, end in ends.items():  # on a full disk this frees the space for `record`
                os.ftruncate(self._files[path], end)
            raise
        # One assignment: Ctrl-C finds all of the chunk in the progress, or nothing.
        self.progress = self.progress.after(chunk, num_kept)

    def _shifted(self, chunk: Rendered) -> Values:
        """Return the columns of a chunk, with ends that count from the start of the split."""
        if self._plan.jpeg is None or not chunk.columns:
            return chunk.columns
        ends = chunk.columns["image_end"] + self.progress.jpeg_bytes[chunk.split]
        return chunk.columns | {"image_end": ends}

    def record(self) -> None:
        """Sync all appended data, and only then record the progress."""
        for descriptor in self._files.values():
            os.fsync(descriptor)
        progress = json.dumps(asdict(self.progress)).encode()
        replace_file(self.folder / "progress.json", progress)
        sync(self.folder)

    def seal(self) -> None:
        """Give every column its final header."""
        for split, num_samples in self.progress.kept.items():
            for name, value in self._plan.stored.items():
                path = self.columns / split / f"{name}.npy"
                with synced_file(path, "r+b") as file:
                    _header(file, value, num_samples)

    def stored(self, file: str) -> StoredFile:
        """Return size and hash of a finished file, named as in the manifest."""
        path = self.columns / file
        start = _header_bytes(path) if path.suffix == ".npy" else 0
        return StoredFile(num_bytes=path.stat().st_size, xxh3_128=file_hash(path, start))

    def close(self) -> None:
        """Close all files and release the lock."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _read(path: Path) -> PackProgress | None:
    try:
        content = json.loads(read_regular(path))
    except FileNotFoundError:
        return None
    moments = {name: Moments(**values) for name, values in content.pop("moments").items()}
    return PackProgress(**content, moments=moments)


def _header(file: BinaryIO, value: np.ndarray[Any, Any], num_samples: int) -> None:
    write_header(file, value.dtype, (num_samples, *value.shape))


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


def _open_at(path: Path, num_bytes: int) -> int:
    """Open a file for writing after its first `num_bytes`. Cut off the rest."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    if os.fstat(descriptor).st_size < num_bytes:
        os.close(descriptor)
        raise ConfigError(
            f"file {path} is shorter than recorded in progress.json: delete its folder and "
            "pack again"
        )
    os.ftruncate(descriptor, num_bytes)
    os.lseek(descriptor, num_bytes, os.SEEK_SET)
    return descriptor


def _write_all(descriptor: int, content: memoryview) -> None:
    """Write everything, or raise OSError. On a full disk a part may be written."""
    while content:
        content = content[os.write(descriptor, content) :]
