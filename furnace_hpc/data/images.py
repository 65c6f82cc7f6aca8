"""Image files to RGB bytes. Shapes: H height, W width."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.data.refusals import Unusable

Fit = Literal["crop", "stretch"]
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BACKGROUND = (255, 255, 255, 255)
# By content, not by name. Not all that Pillow knows: of EPS it has Ghostscript make a picture, a program of its own.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")


class ImageKnobs(BaseModel):
    """Everything that decides the pixels of a stored image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=8, le=2048, description="height and width in pixels")
    fit: Fit = Field(default="crop", description="crop: the middle square; stretch: the whole picture, pressed square")
    filter: Literal["bicubic", "bilinear"] = Field(default="bicubic", description="Pillow's resampling filter")


def read_image(path: Path, knobs: ImageKnobs) -> NDArray[np.uint8]:
    """Return [3, size, size], upright by its EXIF orientation, what is transparent on white.

    Raises:
        Unusable: the file is missing, empty, truncated or no image.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # A JPEG decoder can leave out what the resizing would throw away; never below twice the final size.
            image.draft(image.mode, (2 * knobs.size, 2 * knobs.size))
            return fit_image(to_rgb(ImageOps.exif_transpose(image)), knobs)
    except FileNotFoundError:
        raise Unusable("missing") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        RuntimeError,
        Image.DecompressionBombError,
        MemoryError,
    ) as error:
        raise Unusable(_why(path, error), str(error).replace(str(path), path.name)) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode: grey, palette, CMYK, alpha (on white), 16 bits per channel (scaled, not clipped)."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = _full_scale(image.mode, values.max(initial=0))
        return Image.fromarray(np.clip(np.rint(values * 255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, _BACKGROUND), seen).convert("RGB")
    return image.convert("RGB")


def _full_scale(mode: str, largest: float) -> float:
    """The value that is white: 16 bits say so themselves; 32 bits and floats only by what they hold."""
    if mode.startswith("I;16"):
        return 65_535.0
    if mode == "F" and largest <= 1:
        return 1.0
    return 255.0 if largest <= 255 else 65_535.0


def fit_image(image: Image.Image, knobs: ImageKnobs) -> NDArray[np.uint8]:
    """Resize an RGB image to [3, size, size]."""
    box = None
    if knobs.fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    resized = image.resize((knobs.size, knobs.size), _RESAMPLING[knobs.filter], box=box)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))


def _why(path: Path, error: Exception) -> Literal["empty", "truncated", "unreadable"]:
    try:
        if path.stat().st_size == 0:
            return "empty"
    except OSError:
        return "unreadable"
    return "truncated" if "truncated" in str(error).lower() else "unreadable"
