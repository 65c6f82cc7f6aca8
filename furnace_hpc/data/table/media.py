"""Image and sound files of a table: files of their own, or parts of a tar or staged file."""

import io
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import xxhash
from numpy.typing import NDArray
from PIL import Image

from furnace_hpc.data.decode.audio import (
    StoredKnobs,
    WaveKnobs,
    read_sound,
    read_sound_bytes,
    read_wave,
    read_wave_bytes,
)
from furnace_hpc.data.decode.images import PixelKnobs, read_image, read_image_bytes
from furnace_hpc.data.decode.reading import regular_file
from furnace_hpc.data.decode.segments import Segment
from furnace_hpc.data.packing.rejects import Unusable

WHOLE = -1  # offset of a file that is not part of another
SAMPLE = 1 << 16  # bytes at the start, middle and end that are compared before whole files
THREADS = 16  # they wait for the file system


@dataclass(frozen=True)
class Media:
    """One image or sound file."""

    path: str
    at: int
    """Offset of the file inside `path`. `WHOLE` if it is the file itself."""
    size: int
    name: str
    """The name in the table, for messages."""
    segment: Segment | None = None
    """The part of a sound that is used. None: all of it."""

    def __str__(self) -> str:
        return self.name

    def content(self) -> bytes:
        """Read a part of another file.

        Raises:
            Unusable: the file ends too early.
        """
        if self.at == WHOLE:
            return Path(self.path).read_bytes()
        with Path(self.path).open("rb") as file:
            content = os.pread(file.fileno(), self.size, self.at)
        if len(content) != self.size:
            raise Unusable("truncated", f"{len(content):,} of {self.size:,} bytes")
        return content


def media_at(row: Mapping[str, Any], slot: str) -> Media | None:
    """Return the file in a slot of a staged row. None if the cell is empty."""
    if row[slot] is None:
        return None
    segment = None
    if slot == "audio" and "audio_start" in row:
        segment = Segment(row["audio_start"], row["audio_end"])
    return Media(row[slot], row[f"{slot}_at"], row[f"{slot}_size"], row[f"{slot}_name"], segment)


def image_of(media: Media, knobs: PixelKnobs) -> NDArray[np.uint8]:
    """Return pixels [3, H, W], as `read_image` does."""
    if media.at == WHOLE:
        return read_image(Path(media.path), knobs)
    return read_image_bytes(media.content(), knobs)


def sound_of(media: Media, knobs: StoredKnobs) -> tuple[NDArray[Any], int]:
    """Return stored values and the true length, as `read_sound` does."""
    if media.at == WHOLE:
        return read_sound(Path(media.path), knobs, media.segment)
    return read_sound_bytes(media.content(), knobs, media.segment)


def wave_of(media: Media, knobs: WaveKnobs) -> NDArray[np.float32]:
    """Return the mono waveform, as `read_wave` does."""
    if media.at == WHOLE:
        return read_wave(Path(media.path), knobs, media.segment)
    return read_wave_bytes(media.content(), knobs, media.segment)


def image_size(media: Media, _: Any) -> tuple[int, int]:
    """Return width and height in pixels, from the file's header."""
    with Image.open(_opened(media)) as image:
        return image.size


def sound_length(media: Media, _: Any) -> tuple[float, int]:
    """Return seconds and samples per second, from the file's header."""
    found = soundfile.info(_opened(media))
    if media.segment:
        first, last = media.segment.samples(found.frames, found.samplerate)
        return (last - first) / found.samplerate, found.samplerate
    return found.frames / found.samplerate, found.samplerate


def _opened(media: Media) -> Any:
    if media.at == WHOLE:
        return str(regular_file(Path(media.path)))
    return io.BytesIO(media.content())


def same_content(files: Iterable[Media]) -> list[list[Media]]:
    """Return the groups of two or more files with the same bytes.

    Only files of the same size are read, and only a part of them if that part differs.
    """
    groups = _grouped(files, _size)
    for digest in (_digest_of_samples, _digest):
        groups = [part for group in groups for part in _grouped(group, digest)]
    return groups


def _grouped(files: Iterable[Media], key: Callable[[Media], Any]) -> list[list[Media]]:
    """Group files by a key that is computed in threads. Files without a key are left out."""
    listed = list(files)
    found: dict[Any, list[Media]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for media, value in zip(listed, pool.map(_or_none(key), listed), strict=True):
            if value is not None:
                found.setdefault(value, []).append(media)
    return [group for group in found.values() if len(group) > 1]


def _or_none(key: Callable[[Media], Any]) -> Callable[[Media], Any]:
    """Return the key, or None if the file cannot be read: packing reports such a file."""

    def safe(media: Media) -> Any:
        try:
            return key(media)
        except (OSError, Unusable, ValueError):
            return None

    return safe


def _size(media: Media) -> int | None:
    if media.at != WHOLE:
        return media.size
    return Path(media.path).stat().st_size or None


def _digest_of_samples(media: Media) -> str:
    size, start = _size(media) or 0, max(media.at, 0)
    digest = xxhash.xxh3_128(str(size).encode())
    with Path(media.path).open("rb") as file:
        for place in (0, size // 2, max(0, size - SAMPLE)):
            digest.update(os.pread(file.fileno(), min(SAMPLE, size - place), start + place))
    return digest.hexdigest()


def _digest(media: Media) -> str:
    return xxhash.xxh3_128_hexdigest(media.content())
