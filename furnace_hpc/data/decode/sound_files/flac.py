"""Check FLAC files: count the samples of their frames, and compare with the header.

A frame's header has a checksum, the frame's number and its samples, but not its length in bytes.
"""

import re
from typing import NamedTuple

from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound
from furnace_hpc.data.packing.rejects import Reason, Unusable

MAGIC = b"fLaC"
_TOTAL, _BITS = slice(18, 26), 36  # 64 bits. The lower 36 are the number of samples.
_STEREO = {1, 8, 9, 10}  # codings of two channels. Each frame may use another one.
_SYNCS = (b"\xff\xf8", b"\xff\xf9")


def check_flac(content: bytes) -> CheckedSound:
    """Return the file with the number of samples of its frames in the header.

    Raises:
        Unusable: the header declares more, a frame is missing, or there is none.
    """
    first, fields = _first_frame(content), int.from_bytes(content[_TOTAL], "big")
    declared = fields & (1 << _BITS) - 1
    held, gap = _samples(content, first)
    if declared > held:
        raise Unusable("truncated", f"{held:,} of {declared:,} samples")
    if declared == held:
        return CheckedSound(content, samples=held)
    if gap:
        raise Unusable("truncated", f"a frame is missing after {held:,} samples")
    total = (fields >> _BITS << _BITS | held).to_bytes(8, "big")
    return CheckedSound(content[: _TOTAL.start] + total + content[_TOTAL.stop :], samples=held)


def _first_frame(content: bytes) -> int:
    """Return the offset of the first frame, after the metadata."""
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
    """Return the samples of all consecutive frames, and whether a frame is missing."""
    sync, begin = content[first : first + 2], _frame(content, first)
    if sync not in _SYNCS or begin is None:
        reason: Reason = "truncated" if len(content) - first < 16 else "unreadable"
        raise Unusable(reason, f"no frame at byte {first:,}")
    # A part that was cut out of a longer file keeps its numbers.
    start, held, count, gap = begin.number, 0, 0, False
    for match in re.finditer(re.escape(sync), content[first:]):
        frame = _frame(content, first + match.start())
        if frame is None or not _alike(content, first, first + match.start()):
            continue
        wanted = start + (held if frame.counts_samples else count)
        if frame.number == wanted:
            held, count = held + frame.samples, count + 1
        gap = gap or frame.number > wanted
    return held, gap


def _alike(content: bytes, a: int, b: int) -> bool:
    """Return whether two frame headers have the same rate, bits and channels.

    Random bytes may look like a frame header, but seldom like one of this file.
    """
    channels = {content[a + 3] >> 4, content[b + 3] >> 4}
    same_rate = (content[a + 2] ^ content[b + 2]) & 15 == 0
    same_bits = (content[a + 3] ^ content[b + 3]) & 14 == 0
    return same_rate and same_bits and (len(channels) == 1 or channels <= _STEREO)


class _Frame(NamedTuple):
    """The header of a frame."""

    counts_samples: bool
    """Whether `number` counts samples. Otherwise it counts frames."""
    number: int
    samples: int


def _frame(content: bytes, place: int) -> _Frame | None:
    """Read the frame header at this offset. None if there is none."""
    head = content[place : place + 16]
    if len(head) < 6 or head[3] & 1:
        return None
    ones = 8 - (head[4] ^ 255).bit_length()  # the number is coded as in UTF-8, in up to 7 bytes
    end = 4 + max(1, ones)
    if ones in (1, 8) or any(byte >> 6 != 2 for byte in head[5:end]):
        return None
    number = head[4] & (0x7F >> ones)
    for byte in head[5:end]:
        number = number << 6 | byte & 63
    size, rate = head[2] >> 4, head[2] & 15
    samples = _SAMPLES.get(size, 0)
    if extra := {6: 1, 7: 2}.get(size, 0):  # the number of samples follows in extra bytes
        samples = int.from_bytes(head[end : end + extra], "big") + 1
    end += extra + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if end >= len(head) or not samples or _checksum(head[:end]) != head[end]:
        return None
    return _Frame(bool(head[1] & 1), number, samples)


_SAMPLES = (
    {1: 192}
    | {code: 576 << code - 2 for code in range(2, 6)}
    | {code: 256 << code - 8 for code in range(8, 16)}
)


def _checksum(head: bytes) -> int:
    """Return the CRC-8 with the polynomial 0x07."""
    crc = 0
    for byte in head:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc8_of(byte: int) -> int:
    for _ in range(8):
        byte = byte << 1 & 255 ^ (7 if byte & 128 else 0)
    return byte


_CRC8 = bytes(map(_crc8_of, range(256)))
