"""A sound file after the check of its header: the bytes to decode, and the samples expected."""

import re
from dataclasses import dataclass

_ZEROS = re.compile(rb"\0*")


@dataclass(frozen=True)
class CheckedSound:
    """A sound file that is complete according to its container."""

    content: bytes
    samples: int | None = None
    """Samples per channel that the decoder must return. None if only the decoder knows."""
    min_samples: int = 0
    """Samples per channel that the decoder must return at least, if `samples` is None."""


def skip_id3(content: bytes, place: int = 0) -> int:
    """Return the end of the ID3v2 tags that begin at `place`, with the zeros after them."""
    while content[place : place + 3] == b"ID3" and len(content) >= place + 10:
        flags, sizes = content[place + 5], content[place + 6 : place + 10]
        size = sum((byte & 127) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=True))
        place += 10 + size
        if flags & 16:  # a footer
            place += 10
        if padding := _ZEROS.match(content, place):  # it is not in the tag's size
            place = padding.end()
    return place
