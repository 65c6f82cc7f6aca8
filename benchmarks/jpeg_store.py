"""Measure the JPEG store against stored pixels: bytes and difference of pixels.

    python benchmarks/jpeg_store.py     some seconds

The images are random parts of two photographs of scikit-learn, resized to 224 px.
"""

import numpy as np
import record
from PIL import Image
from sklearn.datasets import load_sample_images

from furnace_hpc.config.manifest import JpegStore
from furnace_hpc.data.jpeg_images import decode, encode_all

COUNT, SIZE = 256, 224
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


def main() -> None:
    """Measure, and write the result."""
    record.begin()
    pixels = pictures()
    files = encode_all(pixels, np.ones(COUNT), STORE)[0]
    decoded = np.stack([decode(file, STORE) for file in files])
    difference = np.abs(decoded.astype(np.int16) - pixels)
    sizes = [len(file) for file in files]
    rows = [
        {
            "bytes_per_image": sum(sizes) / COUNT,
            "largest_image": max(sizes),
            "pixels : jpeg, bytes": pixels.nbytes / sum(sizes),
            "goal": 8,
            "mean_difference_of_255": float(difference.mean()),
        },
    ]
    record.write("jpeg_store", rows, f"{COUNT} parts of two photographs, 224 px, quality 85, 4:2:0")


if __name__ == "__main__":
    main()
