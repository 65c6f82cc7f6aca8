"""Check Ogg files (Vorbis, Opus, FLAC): all pages must be present.

libogg skips damaged and missing pages without an error.
"""

import struct
import zlib
from typing import NamedTuple

from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound
from furnace_hpc.data.packing.rejects import Unusable

MAGIC = b"OggS"
_FIRST, _LAST = 2, 4  # bits of a page's flags
_NO_POSITION = -1  # position of a page on which no packet ends
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    number: int
    flags: int
    position: int
    stream: bytes
    end: int


def check_ogg(content: bytes) -> CheckedSound:
    """Return the file unchanged.

    Raises:
        Unusable: a page is missing or damaged, or the file holds several streams.
    """
    place, number, last, stream, reached = 0, 0, False, b"", 0
    while not last:
        page = _page(content, place)
        stream = stream or page.stream
        if page.stream != stream or bool(page.flags & _FIRST) != (number == 0):
            raise _several_streams(place)
        if page.number != number:
            raise Unusable("truncated", f"page {number:,} is missing: page {page.number:,} follows")
        last, place, number = bool(page.flags & _LAST), page.end, number + 1
        if page.position != _NO_POSITION:
            if page.position < reached:
                raise Unusable("unreadable", f"page {page.number:,} ends before the previous page")
            reached = page.position
    if content[place : place + 4] == MAGIC:
        raise _several_streams(place)
    return CheckedSound(content)


def _several_streams(place: int) -> Unusable:
    return Unusable(
        "unreadable", f"several streams in one file, the second at byte {place:,}: wanted one"
    )


def _page(content: bytes, place: int) -> _Page:
    """Read the page that begins at `place`."""
    if place + 27 > len(content):
        raise Unusable("truncated", "the last page is missing")
    magic, version, flags, position, stream, number, checksum, segments = struct.unpack_from(
        "<4sBBq4sIIB", content, place
    )
    if magic != MAGIC or version != 0:
        raise Unusable("unreadable", f"no page at byte {place:,}")
    end = place + 27 + segments + sum(content[place + 27 : place + 27 + segments])
    if place + 27 + segments > len(content) or end > len(content):
        raise Unusable("truncated", "the last page is cut")
    if _checksum(content[place : place + 22] + bytes(4) + content[place + 26 : end]) != checksum:
        raise Unusable("unreadable", f"page {number:,}, at byte {place:,}, is damaged")
    return _Page(number, flags, position, stream, end)


def _checksum(page: bytes) -> int:
    """Return Ogg's CRC-32: zlib's with reversed bits and the initial value 0."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)
