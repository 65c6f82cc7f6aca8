"""Measure the JPEG store against stored pixels: bytes, difference of pixels, images per second.

    python benchmarks/jpeg_store.py     about a minute

The images are random parts of two photographs of scikit-learn, resized to 224 px. Both stores give
shuffled batches of 32 from memory.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import record
from PIL import Image
from sklearn.datasets import load_sample_images

from furnace_hpc.config.manifest import Column, JpegStore
from furnace_hpc.data.jpeg_images import JpegColumn, decode, encode_all

COUNT, SIZE, BATCH, PASSES = 256, 224, 32, 15
STORE = JpegStore(size=SIZE, stored_size=SIZE)


def pictures() -> np.ndarray:
    """Random parts of photographs [N, 3, 224, 224]. They have 230 to 427 px and are squares."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    made = np.empty((COUNT, 3, SIZE, SIZE), np.uint8)
    for number, out in enumerate(made):
        photo = photos[number % len(photos)]
        side = int(rng.integers(230, min(photo.size) + 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
        part = photo.resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
        out[...] = np.asarray(part).transpose(2, 0, 1)
    return made


def rates(pixels: np.ndarray, column: JpegColumn) -> dict[str, float]:
    """Way -> images per second, the best of some passes over all images."""
    out = np.empty((BATCH, *pixels.shape[1:]), np.uint8)

    def of_pixels(rows: np.ndarray) -> None:
        np.take(pixels, rows, axis=0, out=out, mode="clip")

    ways = {"pixels": of_pixels}
    for threads in (1, 2):
        ways[f"jpeg, {threads} threads"] = lambda rows, n=threads: column.take(rows, out, None, n)
    found = dict.fromkeys(ways, 0.0)
    for seed in range(PASSES):
        order = np.random.default_rng(seed).permutation(COUNT)
        for name, read in ways.items():
            started_s = time.perf_counter()
            for first in range(0, COUNT, BATCH):
                read(order[first : first + BATCH])
            found[name] = max(found[name], COUNT / (time.perf_counter() - started_s))
    return found


def main() -> None:
    """Measure, and write the result."""
    record.begin()
    pixels = pictures()
    files, ends = encode_all(pixels, np.ones(COUNT), STORE)
    decoded = np.stack([decode(file, STORE) for file in files])
    difference = np.abs(decoded.astype(np.int16) - pixels)
    with tempfile.TemporaryDirectory(prefix="furnace-jpeg-") as name:
        path = Path(name) / "image.jpeg"
        path.write_bytes(b"".join(files))
        column = JpegColumn(path, ends, Column(dtype="uint8", shape=(3, SIZE, SIZE), jpeg=STORE))
        measured = rates(pixels, column)
    sizes = [len(file) for file in files]
    rows = [
        {
            "bytes_per_image": sum(sizes) / COUNT,
            "largest_image": max(sizes),
            "pixels : jpeg, bytes": pixels.nbytes / sum(sizes),
            "goal": 8,
            "mean_difference_of_255": float(difference.mean()),
        },
        *({"way": way, "images_per_s": rate} for way, rate in measured.items()),
    ]
    record.write("jpeg_store", rows, f"{COUNT} parts of two photographs, 224 px, quality 85, 4:2:0")


if __name__ == "__main__":
    main()
