"""What a decoder is given of a sound file, and how much must come out: headers are compared with the file first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WholeSound:
    """A sound file of which nothing is missing, as far as its container tells."""

    content: bytes
    samples: int | None = None
    """Samples per channel; the decoder must give so many. None: as many as the decoder says itself."""
    fewest: int = 0
    """Where `samples` is None: the decoder must give so many at least."""


def skip_id3(content: bytes, place: int = 0) -> int:
    """Where the ID3v2 tags that begin at `place` end, with the zeros behind them."""
    while content[place : place + 3] == b"ID3" and len(content) >= place + 10:
        flags, sizes = content[place + 5], content[place + 6 : place + 10]
        size = sum((byte & 127) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=True))
        place += 10 + size + (10 if flags & 16 else 0)
        # padding that the tag does not count
        place += len(content[place:]) - len(content[place:].lstrip(b"\0"))
    return place
