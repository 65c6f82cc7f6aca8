"""Check MP3 files (MPEG audio): find all frames, and compare with the info frame.

libsndfile takes the length from the info frame (Xing, Info), or guesses it from the bit rate of
the first frame. It reads no further. So silent frames are appended to a file without a correct
info frame.
"""

import re
import struct
from typing import NamedTuple

from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound, skip_id3
from furnace_hpc.data.packing.rejects import Unusable

_LAYER_3, _LAYER_2, _LAYER_1 = 1, 2, 3  # codes in a header
_MPEG_1 = 3  # code in a header
_KBIT_PER_S = {  # (MPEG 1, layer) -> bit rates by code
    (True, _LAYER_1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, _LAYER_2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, _LAYER_3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, _LAYER_1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, _LAYER_2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, _LAYER_3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)
_SHIFTS = {3: 0, 2: 1, 0: 2}  # MPEG 1, 2, 2.5 -> how often the rates are halved
_BITRATE, _PADDING, _NO_CHECKSUM = 15 << 12, 1 << 9, 1 << 16  # bits of a header
_FIXED = 0xFFFE0C00  # bits that all frames of a file share: sync, version, layer, rate
_MODE = 3 << 6  # mono if both bits are set
_HIGHEST = 14 << 12
_DECODER_DELAY = 529  # samples
# (MPEG 1, mono) -> bytes of side information, which an info frame has before its name
_SIDE = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}


class _Info(NamedTuple):
    """The content of an info frame. A field is None if it is missing."""

    frames: int | None
    size: int | None
    trimmed: int | None
    """Padding at both ends, in samples. None if the encoder's part has a wrong checksum."""


_NO_INFO = _Info(None, None, None)


def check_mp3(content: bytes) -> CheckedSound | None:
    """Return the file in a form that is decoded completely. None if it begins with no frame.

    Raises:
        Unusable: frames are missing or damaged.
    """
    head = int.from_bytes(content[:4], "big")
    if not _frame_bytes(head):
        return None
    frames, end = _frames(content, head)
    infos = _infos(content, head, dict(frames))
    sound = [(place, size) for place, size in frames if place not in infos]
    info, held = infos.get(0, _NO_INFO), len(sound) * _samples(head)
    if info.frames == len(sound) and info.trimmed is not None:
        return CheckedSound(content, min_samples=held - info.trimmed)
    _check_end(content, end)
    if info.frames is not None and info.frames > len(sound) and info.size != end:
        raise Unusable("truncated", f"{len(sound):,} of {info.frames:,} frames")
    if not sound:
        raise Unusable("empty", "no frame")
    bare = b"".join(content[place : place + size] for place, size in sound)
    silence = _silence(head, len(sound) * (sound[0][1] + 1) - len(bare))
    return CheckedSound(bare + silence, samples=held)


def _frame_bytes(head: int) -> int:
    """Return the bytes of a frame with this header. 0 if it is no header."""
    version, layer, bitrate, rate = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer == 0 or bitrate in (0, 15) or rate == 3:
        return 0
    padding, bits_per_s = head >> 9 & 1, _KBIT_PER_S[version == _MPEG_1, layer][bitrate] * 1000
    rate_hz = _RATES_HZ[rate] >> _SHIFTS[version]
    if layer == _LAYER_1:
        return (12 * bits_per_s // rate_hz + padding) * 4
    return _samples(head) // 8 * bits_per_s // rate_hz + padding


def _samples(head: int) -> int:
    """Return the samples of a frame with this header."""
    version, layer = head >> 19 & 3, head >> 17 & 3
    if layer == _LAYER_1:
        return 384
    if version == _MPEG_1 or layer == _LAYER_2:
        return 1152
    return 576


def _frames(content: bytes, first: int) -> tuple[list[tuple[int, int]], int]:
    """Return (offset, bytes) of all complete frames, and the end of the last one.

    Tags between two concatenated files are left out.
    """
    frames, place = list[tuple[int, int]](), 0
    sizes: dict[bytes, int] = {}  # a cache: a file has few different headers
    while True:
        header = content[place : place + 4]
        if (size := sizes.get(header)) is None:
            size = sizes[header] = _bytes_like(header, first)
        if size and place + size <= len(content):
            frames.append((place, size))
            place += size
            continue
        after = _end_of_tags(content, place)
        if size or not _bytes_like(content[after : after + 4], first):
            return frames, place
        place = after


def _bytes_like(header: bytes, first: int) -> int:
    """Return the bytes of a frame with this header.

    0 if it is no header, or does not belong to a file with the first header `first`.
    """
    head = int.from_bytes(header, "big")
    same = (head ^ first) & _FIXED == 0 and _mono(head) == _mono(first)
    if not same or len(header) != 4:
        return 0
    return _frame_bytes(head)


def _mono(head: int) -> bool:
    return head & _MODE == _MODE


def _end_of_tags(content: bytes, place: int) -> int:
    """Return the end of the tags that begin at `place`."""
    while True:
        after = skip_id3(content, place)
        if content[after : after + 3] == b"TAG":
            after += 128
        if content[after : after + 8] == b"APETAGEX" and len(content) >= after + 16:
            after += 32 + struct.unpack_from("<I", content, after + 12)[0]
        if after == place:
            return place
        place = after


def _check_end(content: bytes, end: int) -> None:
    """Raise Unusable if the bytes after the last frame may have been frames."""
    rest = content[_end_of_tags(content, end) :]
    if not rest.strip(b"\0") or rest.startswith((b"LYRICSBEGIN", b"APETAGEX")):
        return
    if _frame_bytes(int.from_bytes(rest[:4], "big")) > 0 or len(rest) < 4:
        raise Unusable("truncated", f"the last frame, at byte {end:,}, is cut")
    raise Unusable("unreadable", f"no frame at byte {end:,} of {len(content):,}")


def _infos(content: bytes, head: int, sizes: dict[int, int]) -> dict[int, _Info]:
    """Return offset -> info frame. An info frame describes the file and has no sound."""
    if head >> 17 & 3 != _LAYER_3:
        return {}
    side = _SIDE[head >> 19 & 3 == _MPEG_1, _mono(head)]
    found = {}
    for word in (b"Xing", b"Info"):
        for name in re.finditer(word, content):
            place = name.start() - 4 - side
            if place in sizes and (info := _info(content[place : place + sizes[place]], side)):
                found[place] = info
    return found


def _info(frame: bytes, side: int) -> _Info | None:
    body = frame[4:]
    if body[2:side].strip(b"\0") or len(body) < side + 8:
        return None
    place, values = side + 8, list[int | None]()
    flags = int.from_bytes(body[side + 4 : side + 8], "big")
    for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)):
        value = None
        if flags & bit:
            value = int.from_bytes(body[place : place + 4], "big")
            place += size
        values.append(value)
    return _Info(values[0], values[1], _trimmed(frame[: 4 + place + 36], place + 4))


def _trimmed(head: bytes, place: int) -> int | None:
    """Return the padding in samples, from the encoder's part of an info frame at `place`."""
    part = head[place:]
    if len(part) < 36:
        return _DECODER_DELAY
    delay, padding = part[21] << 4 | part[22] >> 4, (part[22] & 15) << 8 | part[23]
    stored = int.from_bytes(part[34:36], "big")
    if stored and stored != _checksum(head[:-2]):
        return None
    return _DECODER_DELAY + delay + padding


def _checksum(content: bytes) -> int:
    """Return the CRC-16 with the polynomial 0x8005, bits reversed, as LAME writes it."""
    crc = 0
    for byte in content:
        crc = crc >> 8 ^ _CRC16[(crc ^ byte) & 255]
    return crc


def _crc16_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0xA001 if byte & 1 else 0)
    return byte


_CRC16 = tuple(map(_crc16_of, range(256)))


def _silence(head: int, size: int) -> bytes:
    """Return frames without sound, together at least `size` bytes."""
    head = head & ~(_BITRATE | _PADDING) | _HIGHEST | _NO_CHECKSUM
    frame = head.to_bytes(4, "big").ljust(_frame_bytes(head), b"\0")
    return frame * (max(0, size) // len(frame) + 2)
