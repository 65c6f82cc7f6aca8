"""Ogg files (Vorbis, Opus, FLAC): whether all pages are there. libogg skips damaged and missing ones in silence."""

import struct
import zlib

from furnace_hpc.data.decode.sound_files.whole_sound import WholeSound
from furnace_hpc.data.packing.rejects import Unusable

MAGIC = b"OggS"
_FIRST, _LAST = 2, 4  # bits of a page's flags
_NO_POSITION = -1  # no packet ends on the page
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def whole_ogg(content: bytes) -> WholeSound:
    """Return the file as it is.

    Raises:
        Unusable: a page is missing or damaged, the last one is not there, or it holds several streams.
    """
    place, number, last, stream, reached = 0, 0, False, b"", 0
    while not last:
        page, flags, position, of, follows = _page(content, place)
        stream = stream or of
        if of != stream or bool(flags & _FIRST) != (number == 0):
            raise Unusable(
                "unreadable",
                f"several streams in one file, the second at byte {place:,}: wanted one",
            )
        if page != number:
            raise Unusable("truncated", f"page {number:,} is missing: page {page:,} follows")
        last, place, number = bool(flags & _LAST), follows, number + 1
        if position != _NO_POSITION:
            if position < reached:
                raise Unusable("unreadable", f"page {page:,} ends before the page before it")
            reached = position
    if content[place : place + 4] == MAGIC:
        raise Unusable(
            "unreadable", f"several streams in one file, the second at byte {place:,}: wanted one"
        )
    return WholeSound(content)


def _page(content: bytes, place: int) -> tuple[int, int, int, bytes, int]:
    """Number, flags, position, stream and end of the page that begins here."""
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
    return number, flags, position, stream, end


def _checksum(page: bytes) -> int:
    """Ogg's CRC-32: zlib's with the bits the other way round, and begun at 0."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)
