"""Check MP3 files (MPEG audio): find all frames, and compare with the info frame.

libsndfile takes the length from the info frame (Xing, Info), or guesses it from the bit rate of
the first frame. It reads no further. So silent frames are appended to a file without a correct
info frame.
"""

import re
from typing import NamedTuple

from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound
from furnace_hpc.data.decode.sound_files.mp3_frames import (
    LAYER_3,
    MPEG_1,
    bytes_like,
    first_frame,
    frame_bytes,
    is_mono,
    num_samples,
    reaches,
)
from furnace_hpc.data.decode.sound_files.mp3_tags import begin_of_last_tags, end_of_tags
from furnace_hpc.data.packing.rejects import Unusable

_BITRATE, _PADDING, _NO_CHECKSUM = 15 << 12, 1 << 9, 1 << 16  # bits of a header
_HIGHEST = 14 << 12
# Without an ID3 tag libsndfile first looks for a file `._NAME`, as macOS writes beside NAME. If it
# exists, libsndfile refuses the MP3.
_EMPTY_TAG = b"ID3\4\0\0\0\0\0\x0a" + bytes(10)
_DECODER_DELAY = 529  # samples
_ID3_HEADER = 10  # bytes
_MAX_JUNK = 1 << 16  # most bytes before the first frame that are no tag
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
    """Return the file in a form that is decoded completely. None if it holds no row of frames.

    Raises:
        Unusable: frames are missing or damaged.
    """
    begin = _begin(content)
    if begin is None:
        return None
    content = content[begin:]
    head = int.from_bytes(content[:4], "big")
    frames, end = _frames(content, head)
    infos = _infos(content, head, dict(frames))
    sound = [(place, size) for place, size in frames if place not in infos]
    info, held = infos.get(0, _NO_INFO), len(sound) * num_samples(head)
    if info.frames == len(sound) and info.trimmed is not None:
        return CheckedSound(_EMPTY_TAG + content, min_samples=held - info.trimmed)
    _check_end(content, end)
    if info.frames is not None and info.frames > len(sound) and info.size != end:
        raise Unusable("truncated", f"{len(sound):,} of {info.frames:,} frames")
    if not sound:
        raise Unusable("empty", "no frame")
    bare = b"".join(content[place : place + size] for place, size in sound)
    silence = _silence(head, len(sound) * (sound[0][1] + 1) - len(bare))
    return CheckedSound(_EMPTY_TAG + bare + silence, samples=held)


def _begin(content: bytes) -> int | None:
    """Return the offset of the first frame. None if there is none.

    Programs write wrong sizes into tags, or other bytes before the first frame.

    Raises:
        Unusable: these bytes may be a damaged frame.
    """
    tags_end = end_of_tags(content, 0)
    after_header = _ID3_HEADER if content.startswith(b"ID3") else 0
    if frame_bytes(int.from_bytes(content[tags_end : tags_end + 4], "big")):
        early = first_frame(content, after_header, tags_end)
        return early if early is not None and reaches(content, early, tags_end) else tags_end
    begin = first_frame(content, after_header, tags_end + _MAX_JUNK)
    if begin is None or not content[tags_end:begin].strip(b"\0"):
        return begin
    if _is_info(content, begin):  # it is the first frame, and counts the others
        return begin
    raise Unusable(
        "unreadable", f"{begin - tags_end:,} bytes before the first whole frame may be another"
    )


def _is_info(content: bytes, place: int) -> bool:
    head = int.from_bytes(content[place : place + 4], "big")
    size = frame_bytes(head)
    return bool(_infos(content[place : place + size], head, {0: size}))


def _frames(content: bytes, first: int) -> tuple[list[tuple[int, int]], int]:
    """Return (offset, bytes) of all complete frames, and the end of the last one.

    Tags between two concatenated files are left out.
    """
    frames, place = list[tuple[int, int]](), 0
    sizes: dict[bytes, int] = {}  # a cache: a file has few different headers
    while True:
        header = content[place : place + 4]
        if (size := sizes.get(header)) is None:
            size = sizes[header] = bytes_like(header, first)
        if size and place + size <= len(content):
            frames.append((place, size))
            place += size
            continue
        after = end_of_tags(content, place)
        if size or not bytes_like(content[after : after + 4], first):
            return frames, place
        place = after


def _check_end(content: bytes, end: int) -> None:
    """Raise Unusable if the bytes after the last frame may have been frames."""
    rest = content[end_of_tags(content, end) : begin_of_last_tags(content, end)]
    if not rest.strip(b"\0") or rest.startswith((b"LYRICSBEGIN", b"APETAGEX")):
        return
    if frame_bytes(int.from_bytes(rest[:4], "big")) > 0 or len(rest) < 4:
        raise Unusable("truncated", f"the last frame, at byte {end:,}, is cut")
    raise Unusable("unreadable", f"no frame at byte {end:,} of {len(content):,}")


def _infos(content: bytes, head: int, sizes: dict[int, int]) -> dict[int, _Info]:
    """Return offset -> info frame. An info frame describes the file and has no sound."""
    if head >> 17 & 3 != LAYER_3:
        return {}
    side = _SIDE[head >> 19 & 3 == MPEG_1, is_mono(head)]
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
    frame = head.to_bytes(4, "big").ljust(frame_bytes(head), b"\0")
    return frame * (max(0, size) // len(frame) + 2)
