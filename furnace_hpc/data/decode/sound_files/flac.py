"""FLAC files: how many samples their frames hold, whatever the header says.

A frame does not say how long it is, but its header has a checksum, its number and its samples.
"""

import re

from furnace_hpc.data.decode.sound_files.whole_sound import WholeSound
from furnace_hpc.data.packing.rejects import Unusable

MAGIC = b"fLaC"
_TOTAL, _BITS = slice(18, 26), 36  # 64 bits, of which the lower 36 are the number of samples
_STEREO = {1, 8, 9, 10}  # ways to write two channels, of which each frame chooses one
_SYNCS = (b"\xff\xf8", b"\xff\xf9")


def whole_flac(content: bytes) -> WholeSound:
    """Return a FLAC file whose header has the number of samples that its frames hold.

    Raises:
        Unusable: the header promises more, a frame is missing, or there is none.
    """
    first, fields = _first_frame(content), int.from_bytes(content[_TOTAL], "big")
    promised = fields & (1 << _BITS) - 1
    held, gap = _samples(content, first)
    if promised > held:
        raise Unusable("truncated", f"{held:,} of {promised:,} samples")
    if promised == held:
        return WholeSound(content, samples=held)
    if gap:
        raise Unusable("truncated", f"a frame is missing after {held:,} samples")
    total = (fields >> _BITS << _BITS | held).to_bytes(8, "big")
    return WholeSound(content[: _TOTAL.start] + total + content[_TOTAL.stop :], samples=held)


def _first_frame(content: bytes) -> int:
    """Where the frames begin: behind the metadata."""
    place, last = 4, False
    while not last:
        if place + 4 > len(content):
            raise Unusable("truncated", "the file ends in its metadata")
        last, kind = content[place] > 127, content[place] & 127
        if (place == 4) != (kind == 0):
            raise Unusable("unreadable", "no STREAMINFO block at the beginning")
        place += 4 + int.from_bytes(content[place + 1 : place + 4], "big")
    return place


def _samples(content: bytes, first: int) -> tuple[int, bool]:
    """Samples of the frames that follow each other, and whether there is a frame that does not."""
    sync, begin = content[first : first + 2], _frame(content, first)
    if sync not in _SYNCS or begin is None:
        raise Unusable(
            "truncated" if len(content) - first < 16 else "unreadable",
            f"no frame at byte {first:,}",
        )
    # a part that was cut out of a longer file keeps its numbers
    start, held, number, gap = begin[1], 0, 0, False
    for place in re.finditer(re.escape(sync), content[first:]):
        frame = _frame(content, first + place.start())
        if frame is None or not _alike(content, first, first + place.start()):
            continue
        counts_samples, found, samples = frame
        wanted = start + (held if counts_samples else number)
        if found == wanted:
            held, number = held + samples, number + 1
        gap = gap or found > wanted
    return held, gap


def _alike(content: bytes, a: int, b: int) -> bool:
    """Whether two frame headers have the same rate, bits and channels; chance makes what looks like one, seldom two."""
    channels = {content[a + 3] >> 4, content[b + 3] >> 4}
    same = (content[a + 2] ^ content[b + 2]) & 15 == 0 and (
        content[a + 3] ^ content[b + 3]
    ) & 14 == 0
    return same and (len(channels) == 1 or channels <= _STEREO)


def _frame(content: bytes, place: int) -> tuple[bool, int, int] | None:
    """(whether frames are numbered by samples, number, samples) of the frame that begins here, if one does."""
    head = content[place : place + 16]
    if len(head) < 6 or head[3] & 1:
        return None
    ones = 8 - (head[4] ^ 255).bit_length()  # the number is written as in UTF-8, in up to 7 bytes
    end = 4 + max(1, ones)
    if ones in (1, 8) or any(byte >> 6 != 2 for byte in head[5:end]):
        return None
    number = head[4] & (0x7F >> ones)
    for byte in head[5:end]:
        number = number << 6 | byte & 63
    size, rate = head[2] >> 4, head[2] & 15
    written = {6: 1, 7: 2}.get(size, 0)  # bytes of a number of samples that no code stands for
    samples = (
        int.from_bytes(head[end : end + written], "big") + 1 if written else _SAMPLES.get(size, 0)
    )
    end += written + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if end >= len(head) or not samples or _checksum(head[:end]) != head[end]:
        return None
    return bool(head[1] & 1), number, samples


_SAMPLES = (
    {1: 192}
    | {code: 576 << code - 2 for code in range(2, 6)}
    | {code: 256 << code - 8 for code in range(8, 16)}
)


def _checksum(head: bytes) -> int:
    """CRC-8 with the polynomial 0x07."""
    crc = 0
    for byte in head:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc8_of(byte: int) -> int:
    for _ in range(8):
        byte = byte << 1 & 255 ^ (7 if byte & 128 else 0)
    return byte


_CRC8 = bytes(map(_crc8_of, range(256)))
