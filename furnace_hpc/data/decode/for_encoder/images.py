"""Resize and crop images as the image processors of transformers do. H height, W width."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.config.preprocessing.image import ImageNeeds

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


class EncoderImageKnobs(BaseModel):
    """All settings that decide the pixels of an image that is stored for an encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(ge=1, description="of the stored image, in pixels")
    width: int = Field(ge=1, description="of the stored image, in pixels")
    shorter_side: int | None = Field(description="length after resizing. None: to resize_to")
    resize_to: tuple[int, int] | None = Field(description="height and width after resizing")
    filter: Filter = Field(description="Pillow's resampling filter")

    @classmethod
    def of(cls, needs: ImageNeeds) -> "EncoderImageKnobs":
        """Return the settings for an encoder."""
        return cls.model_validate(needs.model_dump(include=set(cls.model_fields)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a stored image."""
        return 3, self.height, self.width

    @property
    def decoded_side(self) -> int | None:
        """None: a JPEG is decoded at its full size, as transformers does."""
        return None

    def fitted(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels [3, H, W] of an RGB image: resized, and then cropped in the middle."""
        height, width = self._resized(image.height, image.width)
        resampling = Image.Resampling[self.filter.upper()]
        pixels = np.asarray(image.resize((width, height), resampling), np.uint8)
        return np.ascontiguousarray(self._middle(pixels).transpose(2, 0, 1))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize_to:
            return self.resize_to
        assert self.shorter_side
        short, long = sorted((height, width))
        other = max(1, int(self.shorter_side * long / short))
        if width <= height:
            return other, self.shorter_side
        return self.shorter_side, other

    def _middle(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop [H, W, 3] in the middle. What a smaller image lacks is black."""
        missing = [
            max(0, side - have) for side, have in zip(self.shape[1:], pixels.shape, strict=False)
        ]
        if any(missing):
            before = [-(-lack // 2) for lack in missing]
            around = [(first, lack - first) for first, lack in zip(before, missing, strict=True)]
            pixels = np.pad(pixels, (*around, (0, 0)))
        top = (pixels.shape[0] - self.height) // 2
        left = (pixels.shape[1] - self.width) // 2
        return pixels[top : top + self.height, left : left + self.width]
