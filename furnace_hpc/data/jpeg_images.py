"""Images that are stored as JPEG: encode, decode, and read them as a column.

N samples, F frames of a clip, C = 3 channels, H height, W width.
"""

import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Column, JpegStore
from furnace_hpc.host.regular_file import open_regular

Array = NDArray[Any]
Box = tuple[float, float, float, float]
"""Left, top, width and height of a part of an image, as fractions of the image."""
MAX_THREADS = 8  # of one process. Each decodes about 500 images of 224 px per second.
BLOCK_BYTES = 1 << 24


def encode(pixels_CHW: Array, store: JpegStore) -> bytes:
    """Return an RGB image as a JPEG file."""
    image = Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=store.quality, subsampling=store.subsampling)
    return file.getvalue()


def decode(content: bytes, store: JpegStore, box: Box | None = None) -> Array:
    """Return pixels [3, size, size] of a JPEG file: its middle, or a box of it, resized.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.load()
            if image.mode != "RGB" or image.size != (store.stored_size, store.stored_size):
                raise ValueError(f"it is {image.mode} {image.size}")
            return _cut(image, store, box)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _cut(image: Image.Image, store: JpegStore, box: Box | None) -> Array:
    if box is None:
        first = (store.stored_size - store.size) // 2
        pixels_HWC = np.asarray(image)
        middle = slice(first, first + store.size)
        return pixels_HWC[middle, middle].transpose(2, 0, 1)
    return np.asarray(resized(image, box, (store.size, store.size))).transpose(2, 0, 1)


def resized(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Return a box of an image, resized to (width, height) with Pillow's bilinear filter."""
    left, top = box[0] * image.width, box[1] * image.height
    right = min(left + box[2] * image.width, image.width)
    bottom = min(top + box[3] * image.height, image.height)
    return image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def encode_all(pixels: Array, present_N: Array, store: JpegStore) -> tuple[list[bytes], Array]:
    """Encode images [N, (F,) C, H, W]. The files of absent ones are empty.

    Return the files in order, and where each of them ends, [N] or [N, F].
    """
    files = [
        encode(image, store) if present else b""
        for images, present in zip(pixels, present_N, strict=True)
        for image in images.reshape(-1, *images.shape[-3:])
    ]
    ends = np.array([len(file) for file in files], np.int64).cumsum()
    return files, ends.reshape(pixels.shape[:-3])


def decode_all(files: list[bytes], like: Array, store: JpegStore) -> Array:
    """Return the images of a loader, [..., C, size, size]. `like` has the leading axes."""
    images = np.zeros((len(files), 3, store.size, store.size), np.uint8)
    for image, file in zip(images, files, strict=True):
        if file:
            image[...] = decode(file, store)
    return images.reshape(*like.shape, *images.shape[1:])


class JpegColumn:
    """A column of images that are decoded when they are read. An empty file is a black image."""

    def __init__(self, path: Path, ends: Array, column: Column) -> None:
        """Open the column.

        Args:
            path: the JPEG files, one after the other.
            ends: where each file ends, [N] or [N, F].
            column: type and shape of a sample's images.
        """
        assert column.jpeg
        self.path, self.shape, self.dtype = path, (len(ends), *column.shape), np.dtype(np.uint8)
        self._store, self._column = column.jpeg, column
        self._ends = np.asarray(ends).reshape(-1)
        self._file = open_regular(path)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, row: int) -> Array:
        """Return the decoded images of a sample, [C, H, W] or [F, C, H, W]."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"sample {row}, and {self.path} has {len(self)}")
        per_sample = int(np.prod(self._column.shape[:-3], dtype=np.int64))
        first = (row % len(self)) * per_sample
        indices = np.arange(first, first + per_sample)
        images = np.empty((per_sample, *self._column.shape[-3:]), np.uint8)
        self.take(indices, images)
        return images.reshape(self._column.shape)

    def take(
        self,
        indices: NDArray[np.int64],
        out: Array,
        boxes: Sequence[Box] | None = None,
        threads: int | None = None,
    ) -> None:
        """Decode images in threads. The values do not depend on the number of threads.

        Args:
            indices: images [B]. In clips every frame counts as an image.
            out: memory for them, [B, C, H, W].
            boxes: the part of each image that is resized to H x W [the middle, in its own size].
            threads: number of threads [all usable cores, at most 8].

        Raises:
            ConfigError: a file is damaged.
        """
        work = [self._decode_into, indices.tolist(), out, boxes or repeat(None)]
        if threads == 1 or len(indices) == 1:
            list(map(*work))
        elif threads is None:
            list(self._threads().map(*work))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(*work))

    def advise(self, indices: NDArray[np.int64]) -> None:
        """Let the kernel read the files of these images."""
        for index in indices.tolist():
            start = int(self._ends[index - 1]) if index else 0
            num_bytes = int(self._ends[index]) - start
            if num_bytes > 0:  # 0 would mean: to the end of the file
                os.posix_fadvise(self._file.fileno(), start, num_bytes, os.POSIX_FADV_WILLNEED)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                count = min(MAX_THREADS, len(os.sched_getaffinity(0)))
                self._pool = ThreadPoolExecutor(count, thread_name_prefix="jpeg")
            return self._pool

    def _decode_into(self, index: int, out_CHW: Array, box: Box | None) -> None:
        start = int(self._ends[index - 1]) if index else 0
        num_bytes = int(self._ends[index]) - start
        if num_bytes == 0:
            out_CHW[...] = 0
            return
        try:
            # Unlike a memory map, this does not kill the process if the file became shorter.
            content = os.pread(self._file.fileno(), max(0, num_bytes), start)
            if len(content) != num_bytes:
                raise ValueError(f"{len(content):,} of {num_bytes:,} bytes")
            out_CHW[...] = decode(content, self._store, box)
        except ValueError as error:
            raise ConfigError(
                f"data file {self.path} has a damaged image at byte {start:,} ({error}): pack the "
                "data set again"
            ) from None


def file_hash(path: Path, start: int = 0) -> str:
    """Return the xxh3-128 hash of a file's bytes from `start` on."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
