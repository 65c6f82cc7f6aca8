"""Turn image files into RGB bytes. Shapes: H height, W width."""

import io
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngImageFile
from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.data.decode.image_metadata import kind_of, orientation_of, without_metadata
from furnace_hpc.data.decode.reading import reading, regular_file
from furnace_hpc.data.packing.rejects import Unusable

Fit = Literal["crop", "stretch"]
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BACKGROUND = (255, 255, 255, 255)
# Formats are recognised by content, not by name. EPS is left out: Pillow starts Ghostscript for it.
_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
if features.check("avif"):
    _FORMATS = (*_FORMATS, "AVIF")
_MAX_REREAD = 1 << 30  # largest file, in bytes, that is decoded again without metadata
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # value of the EXIF tag Orientation -> transpose that makes the picture upright


class ImageKnobs(BaseModel):
    """All settings that decide the pixels of a stored image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=8, le=2048, description="height and width in pixels")
    fit: Fit = Field(
        default="crop",
        description="crop: the middle square. stretch: the whole picture, made square",
    )
    filter: Literal["bicubic", "bilinear"] = Field(
        default="bicubic", description="Pillow's resampling filter"
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of a stored image."""
        return 3, self.size, self.size

    @property
    def decoded_side(self) -> int | None:
        """Return the side at which a JPEG may be decoded."""
        return 2 * self.size

    def fitted(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels [3, size, size] of an RGB image."""
        return fit_image(image, self)


class PixelKnobs(Protocol):
    """How an image is stored."""

    @property
    def decoded_side(self) -> int | None:
        """Return the side at which a JPEG may be decoded. None: at its full size."""

    def fitted(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the stored pixels [3, H, W] of an RGB image."""


def read_image(path: Path, knobs: PixelKnobs) -> NDArray[np.uint8]:
    """Return pixels [3, H, W], upright by the EXIF orientation, with transparency on white.

    Raises:
        Unusable: the file is missing, empty, truncated, not finite or no image.
    """
    with reading(path), regular_file(path).open("rb") as file:
        return _read(file, knobs)


def read_image_bytes(content: bytes, knobs: PixelKnobs) -> NDArray[np.uint8]:
    """Return the pixels of an image file that is inside another file, as `read_image` does."""
    if not content:
        raise Unusable("empty")
    return _read(io.BytesIO(content), knobs)


def _read(file: IO[bytes], knobs: PixelKnobs) -> NDArray[np.uint8]:
    try:
        return _decode(file, knobs)
    except Unusable:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types
        if (bare := _bare(file)) is not None:
            with suppress(Exception):  # report the first error
                return _decode(io.BytesIO(bare[0]), knobs, exif=bare[1])
        if isinstance(error, UnidentifiedImageError):
            raise _unidentified(file) from None
        raise error from None


def _decode(file: IO[bytes], knobs: PixelKnobs, exif: bytes = b"") -> NDArray[np.uint8]:
    with Image.open(file, formats=_FORMATS) as image:
        # A JPEG decoder can decode at a smaller size, which must be at least twice the final one.
        if side := knobs.decoded_side:
            image.draft(image.mode, (side, side))
        _scale_transparency(image)
        image.load()
        if exif:
            image.info["exif"] = exif
        upright: Image.Image = image
        method = _UPRIGHT.get(_orientation(image))
        if method is not None:
            upright = image.transpose(method)
        return knobs.fitted(to_rgb(upright))


def _bare(file: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Return the image without metadata, and its EXIF. None if too large or not parsable."""
    file.seek(0)
    content = file.read(_MAX_REREAD + 1)
    if len(content) > _MAX_REREAD:
        return None
    return without_metadata(content)


def _unidentified(file: IO[bytes]) -> Unusable:
    file.seek(0)
    return Unusable("unreadable", f"{kind_of(file.read(512))}, wanted {', '.join(_FORMATS)}")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF tag Orientation, 1 to 8. 1 if it cannot be read. Other tags are ignored."""
    found = orientation_of(image.info.get("exif"))
    if found is not None:
        return found
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)  # XMP may have it instead
        return int(value) if value in _UPRIGHT else 1
    except Exception:  # Pillow's reader of EXIF raises errors of many types
        return 1


def _scale_transparency(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG as Pillow scales its pixels.

    The file stores that colour in its own number of bits per channel.
    """
    if not isinstance(image, PngImageFile) or not image.tile:
        return
    clear, bits = image.info.get("transparency"), image.tile[0].args
    if bits == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif bits in ("L;2", "L;4") and isinstance(clear, int):
        image.info["transparency"] = clear * (85 if bits == "L;2" else 17)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: alpha onto white, 16 bits per channel scaled to 8.

    Raises:
        Unusable: a value is not finite.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_to_rgb(image)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, _BACKGROUND), seen).convert("RGB")
    return image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise Unusable("not finite")
    top = _full_scale(image.mode, float(values.max(initial=0)))
    clear = image.info.get("transparency")
    grey = np.empty(values.shape, np.uint8)
    # A few rows at a time: the whole image as float64 would be eight times the file.
    for row in range(0, len(values), 256):
        part = values[row : row + 256]
        grey[row : row + 256] = np.clip(np.rint(part.astype(np.float64) * 255.0 / top), 0, 255)
        if isinstance(clear, int):
            grey[row : row + 256][part == clear] = _BACKGROUND[0]
    return Image.fromarray(grey).convert("RGB")


def _full_scale(mode: str, largest: float) -> float:
    """Return the value of white. For 32 bits and floats it depends on the largest value."""
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
