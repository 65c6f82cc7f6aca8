"""Random crops, flips and colours of stored images.

B batch, C channels, H height, W width. Images of 8 bits stay 8 bits, so every value is rounded
once per change.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from furnace_hpc.config.sections.augment import ImageAugmentation
from furnace_hpc.data.jpeg_images import Box, resized

Array = NDArray[Any]
DRAWS = 8
"""Numbers per image: flip, area, shape, left, top, brightness, contrast, saturation."""
RATIO = 4 / 3  # largest ratio of width and height of a crop, and its inverse the smallest
GREY = np.array([299, 587, 114], np.int64)  # ITU-R BT.601, in thousandths


def boxes_of(drawn: NDArray[np.float64], smallest_area: float) -> list[Box]:
    """Return the random crop of each image, as in Szegedy et al. (2015).

    The area is uniform from the smallest to the whole image. The ratio of the sides is uniform on a
    logarithmic scale, from 3/4 to 4/3 if both sides then fit. The place is uniform.
    """
    boxes = []
    for _, area, shape, left, top, *_ in drawn.tolist():
        share = smallest_area + (1 - smallest_area) * area
        limit = min(math.log(RATIO), -math.log(share))
        ratio = math.exp(limit * (2 * shape - 1))
        width, height = min(1.0, math.sqrt(share * ratio)), min(1.0, math.sqrt(share / ratio))
        boxes.append((left * (1 - width), top * (1 - height), width, height))
    return boxes


def crop(images: Array, boxes: list[Box]) -> None:
    """Replace each image [B, C, H, W] by its box, resized to H x W."""
    for image, box in zip(images, boxes, strict=True):
        size = (image.shape[-1], image.shape[-2])
        if image.dtype == np.uint8 and len(image) == 3:
            whole = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            image[...] = np.asarray(resized(whole, box, size)).transpose(2, 0, 1)
            continue
        for channel in image:
            plain = channel if channel.dtype == np.uint8 else channel.astype(np.float32)
            channel[...] = np.asarray(resized(Image.fromarray(plain), box, size))


def flip(images: Array, drawn: NDArray[np.float64], probability: float) -> None:
    """Exchange left and right of some images."""
    chosen = np.flatnonzero(drawn[:, 0] < probability)
    images[chosen] = images[chosen][..., ::-1]


def change_colours(images: Array, drawn: NDArray[np.float64], strength: float) -> None:
    """Change brightness, contrast and saturation of images of 8 bits.

    With the factors b, c, s, the mean grey m of the image, and the grey g of a pixel:
    v <- c b v + (1 - c) b m, rounded and clipped, then v <- g + s (v - g), rounded and clipped.
    """
    factors = 1 + strength * (2 * drawn[:, 5:8] - 1)
    levels = np.arange(256, dtype=np.float64)
    for image, (brightness, contrast, saturation) in zip(images, factors.tolist(), strict=True):
        mean = _grey(image).sum() / 1000 / image[0].size
        changed = contrast * brightness * levels + (1 - contrast) * brightness * mean
        image[...] = _rounded(changed)[image]
        if len(image) == 3:
            grey = (_grey(image) / 1000).astype(np.float32)
            image[...] = _rounded(grey + np.float32(saturation) * (image - grey))


def _grey(image: Array) -> NDArray[np.int64]:
    """Return 1000 times the grey of each pixel [H, W], exactly. So its sum has no rounding."""
    if len(image) != 3:
        return np.asarray(image.astype(np.int64).sum(0) * (1000 // len(image)))
    return np.asarray((image.astype(np.int64) * GREY[:, None, None]).sum(0))


def _rounded(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def augment_images(images: Array, drawn: NDArray[np.float64], config: ImageAugmentation) -> None:
    """Flip images and change their colours. Crops are made before."""
    if config.flip:
        flip(images, drawn, config.flip)
    if config.colour:
        change_colours(images, drawn, config.colour)
