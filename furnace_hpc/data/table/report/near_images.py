"""Count images of a pack that look like an image of another split, such as a re-encoded copy.

An image is reduced to a small grey thumbnail. Two images look alike if their difference hashes
(one bit for each step of brightness to the right) and their thumbnails are nearly equal.

N images, H height, W width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.manifest import SPLITS, Manifest
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.data.columns import Columns
from furnace_hpc.data.jpeg_images import JpegColumn

MAX_IMAGES = 200_000  # of each split
BLOCK = 256  # images in memory at a time
SIDE = 16  # pixels of a thumbnail
BANDS = 4  # two hashes that differ in fewer bits than this share one of so many parts
MAX_DIFFERENCE = 3.0  # mean over the pixels of two thumbnails, of 255
MAX_BUCKET = 2000  # different thumbnails with one part of a hash. More have no structure

Bytes = NDArray[np.uint8]


def near_images(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a warning if images of a pack look like images of another split."""
    column = manifest.columns.get("image")
    if column is None or column.dtype != "uint8" or len(column.shape) < 3:
        return  # it holds files, not pixels
    names, codes, thumbnails = [], [], []
    for code, split in enumerate(SPLITS):
        columns = Columns(manifest, folder).split(split)
        present = columns["present"][:MAX_IMAGES]
        rows = np.flatnonzero(present[:, manifest.modalities.index("image")])
        names.append(columns["source_id"][rows])
        codes.append(np.full(len(rows), code, np.uint8))
        thumbnails.append(_thumbnails(columns["image"], rows))
    pairs = similar_pairs(np.concatenate(thumbnails), np.concatenate(codes))
    if not len(pairs):
        return
    all_names, all_codes = np.concatenate(names), np.concatenate(codes)
    places = [f"{all_names[row].decode()} ({SPLITS[all_codes[row]]})" for row in pairs[0]]
    number = len(np.unique(pairs))
    verb = "looks" if number == 1 else "look"
    yield (
        f"{counted(number, 'image')} {verb} like an image of another split, such as "
        f"{' and '.join(places)}"
    )


def _thumbnails(images: NDArray[Any] | JpegColumn, rows: NDArray[np.int64]) -> Bytes:
    """Return thumbnails [N, SIDE, SIDE] of images [N, C, H, W], or of clips' middle frames."""
    found = np.empty((len(rows), SIDE, SIDE), np.uint8)
    for first in range(0, len(rows), BLOCK):
        own = rows[first : first + BLOCK]
        grey = _pixels(images, own).mean(axis=1, dtype=np.float32)
        found[first : first + BLOCK] = np.rint(_shrunk(grey, SIDE, SIDE))
    return found


def _pixels(images: NDArray[Any] | JpegColumn, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return images [N, C, H, W], of clips the middle frames."""
    is_clip = len(images.shape) == 5
    if isinstance(images, JpegColumn):
        frames = images.shape[1] if is_clip else 1
        pixels = np.empty((len(rows), *images.shape[-3:]), np.uint8)
        images.take(rows * frames + frames // 2, pixels)
        return pixels
    return images[rows, images.shape[1] // 2] if is_clip else images[rows]


def _shrunk(grey: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return means over areas: [N, H, W] to [N, height, width]."""
    for axis, size in ((1, height), (2, width)):
        edges = np.linspace(0, grey.shape[axis], size, endpoint=False).astype(int)
        counts = np.diff(np.append(edges, grey.shape[axis])).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = size
        sums = np.add.reduceat(grey, edges, axis=axis)
        grey = np.asarray(sums / counts.reshape(shape), np.float32)
    return grey


def difference_hashes(thumbnails: Bytes) -> NDArray[np.uint64]:
    """Return 64 bits of each thumbnail [N, SIDE, SIDE]: is the area to the right brighter?"""
    small = _shrunk(thumbnails.astype(np.float32), 8, 9)
    bits = np.packbits((small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 64), axis=1)
    return bits.view(np.uint64).ravel()


def similar_pairs(thumbnails: Bytes, codes: Bytes) -> NDArray[np.int64]:
    """Return pairs [P, 2] of similar thumbnails of two splits.

    Args:
        thumbnails: [N, SIDE, SIDE].
        codes: number of the split of each.
    """
    hashes = difference_hashes(thumbnails)
    found = []
    for band in range(BANDS):
        keys = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=np.uint64(1 << 16)))
        for rows in np.split(order, starts[1:]):
            if len(np.unique(codes[rows])) > 1:
                found.append(_pairs_of(rows, hashes, thumbnails, codes))
    if not found:
        return np.empty((0, 2), np.int64)
    return np.unique(np.concatenate(found), axis=0)


def _pairs_of(
    rows: NDArray[np.int64], hashes: NDArray[np.uint64], thumbnails: Bytes, codes: Bytes
) -> NDArray[np.int64]:
    """Return the similar pairs among rows that share a part of their hashes."""
    rows = rows[:MAX_BUCKET]
    flat = thumbnails[rows].reshape(len(rows), -1).astype(np.int16)
    found = []
    for place, row in enumerate(rows):
        later = np.arange(place + 1, len(rows))
        later = later[codes[rows[later]] != codes[row]]
        bits = np.bitwise_count(hashes[rows[later]] ^ hashes[row])
        later = later[bits < BANDS]
        difference = np.abs(flat[later] - flat[place]).mean(axis=1)
        for other in rows[later[difference <= MAX_DIFFERENCE]]:
            found.append((min(row, other), max(row, other)))
    return np.array(found, np.int64).reshape(-1, 2)
