"""MP3 files (MPEG audio): which frames a file holds, whatever its info frame says.

libsndfile takes the length from the info frame (Xing, Info), or guesses it from the first frame's bit rate, and reads
no further. So a file without a right info frame is given to it with silent frames behind it.
"""

import struct
from typing import NamedTuple

from furnace_hpc.data.refusals import Unusable
from furnace_hpc.data.whole_sound import WholeSound, skip_id3

_LAYER_3, _LAYER_2, _LAYER_1 = 1, 2, 3  # as in a header
_KBIT_PER_S = {  # (MPEG 1, layer) -> bit rates by code
    (True, _LAYER_1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, _LAYER_2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, _LAYER_3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, _LAYER_1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, _LAYER_2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, _LAYER_3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)
_SHIFTS = {3: 0, 2: 1, 0: 2}  # MPEG 1, 2, 2.5 -> their rates are halved so often
_BITRATE, _PADDING, _NO_CHECKSUM = 15 << 12, 1 << 9, 1 << 16  # bits of a header
_FIXED = 0xFFFE0C00  # bits that all frames of a file share: sync, version, layer, rate
_HIGHEST = 14 << 12
_DECODER_DELAY = 529


class _Frame(NamedTuple):
    place: int
    size: int
    samples: int
    head: int

    @property
    def mono(self) -> bool:
        return self.head >> 6 & 3 == 3


class _Info(NamedTuple):
    """What an info frame says; None: it does not."""

    frames: int | None
    size: int | None
    trimmed: int | None
    """Samples of padding at both ends; None: the encoder's part has a wrong checksum."""


def whole_mp3(content: bytes) -> WholeSound | None:
    """Return an MP3 file that is decoded as a whole; None if it does not begin with a frame.

    Raises:
        Unusable: frames are missing or damaged.
    """
    first = _frame(content, 0)
    if first is None:
        return None
    frames, end = _frames(content, first)
    infos = {frame.place: info for frame in frames if (info := _info(content, frame))}
    sound = [frame for frame in frames if frame.place not in infos]
    held, info = sum(frame.samples for frame in sound), infos.get(0)
    promised = info.frames if info else None
    if info and promised == len(sound) and info.trimmed is not None:
        return WholeSound(content, fewest=held - info.trimmed)
    _check_end(content, end)
    if info and promised is not None and promised > len(sound) and info.size != end:
        raise Unusable("truncated", f"{len(sound):,} of {promised:,} frames")
    if not sound:
        raise Unusable("empty", "no frame")
    bare = b"".join(content[frame.place : frame.place + frame.size] for frame in sound)
    return WholeSound(bare + _silence(first, len(sound) * (sound[0].size + 1) - len(bare)), samples=held)


def _frame(content: bytes, place: int) -> _Frame | None:
    if place + 4 > len(content):
        return None
    head = struct.unpack_from(">I", content, place)[0]
    version, layer, bitrate, rate = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer == 0 or bitrate in (0, 15) or rate == 3:
        return None
    full, padding = version == 3, head >> 9 & 1
    bits_per_s, rate_hz = _KBIT_PER_S[full, layer][bitrate] * 1000, _RATES_HZ[rate] >> _SHIFTS[version]
    if layer == _LAYER_1:
        return _Frame(place, (12 * bits_per_s // rate_hz + padding) * 4, 384, head)
    samples = 1152 if full or layer == _LAYER_2 else 576
    return _Frame(place, samples // 8 * bits_per_s // rate_hz + padding, samples, head)


def _frames(content: bytes, first: _Frame) -> tuple[list[_Frame], int]:
    """All whole frames, and where the last one ends; tags between two files in one are left out."""
    frames, place = list[_Frame](), 0
    while True:
        frame = _frame(content, place)
        if frame and (frame.head ^ first.head) & _FIXED == 0 and frame.mono == first.mono:
            if place + frame.size > len(content):
                return frames, place
            frames.append(frame)
            place += frame.size
        elif (behind := _behind_tag(content, place)) > place and _frame(content, behind):
            place = behind
        else:
            return frames, place


def _behind_tag(content: bytes, place: int) -> int:
    """Where the tags that begin here end."""
    while True:
        behind = skip_id3(content, place)
        if content[behind : behind + 3] == b"TAG":
            behind += 128
        if content[behind : behind + 8] == b"APETAGEX" and len(content) >= behind + 16:
            behind += 32 + struct.unpack_from("<I", content, behind + 12)[0]
        if behind == place:
            return place
        place = behind


def _check_end(content: bytes, end: int) -> None:
    """Raise Unusable where what follows the last frame may have been frames."""
    rest = content[_behind_tag(content, end) :]
    if rest.strip(b"\0") and not rest.startswith((b"LYRICSBEGIN", b"APETAGEX")):
        cut = _frame(rest, 0) is not None or len(rest) < 4
        detail = f"the last frame, at byte {end:,}, is cut" if cut else f"no frame at byte {end:,} of {len(content):,}"
        raise Unusable("truncated" if cut else "unreadable", detail)


def _info(content: bytes, frame: _Frame) -> _Info | None:
    """What the frame says of the file, if it is an info frame: one without sound."""
    if frame.head >> 17 & 3 != _LAYER_3:
        return None
    full = frame.head >> 19 & 3 == 3
    side = (17 if frame.mono else 32) if full else (9 if frame.mono else 17)
    body = content[frame.place + 4 : frame.place + frame.size]
    if body[2:side].strip(b"\0") or body[side : side + 4] not in (b"Xing", b"Info"):
        return None
    place, values = side + 8, list[int | None]()
    flags = int.from_bytes(body[side + 4 : side + 8], "big")
    for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)):
        values.append(int.from_bytes(body[place : place + 4], "big") if flags & bit else None)
        place += size if flags & bit else 0
    return _Info(values[0], values[1], _trimmed(content[frame.place : frame.place + 4 + place + 36], place + 4))


def _trimmed(head: bytes, place: int) -> int | None:
    """Samples that the encoder's part of an info frame, which begins at `place`, takes for padding."""
    part = head[place:]
    if len(part) < 36:
        return _DECODER_DELAY
    delay, padding = part[21] << 4 | part[22] >> 4, (part[22] & 15) << 8 | part[23]
    stored = int.from_bytes(part[34:36], "big")
    if stored and stored != _checksum(head[:-2]):
        return None
    return _DECODER_DELAY + delay + padding


def _checksum(content: bytes) -> int:
    """CRC-16 with the polynomial 0x8005, bits reversed, as LAME writes it."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


def _silence(first: _Frame, size: int) -> bytes:
    """Some frames without sound, together no smaller than `size`."""
    head = first.head & ~(_BITRATE | _PADDING) | _HIGHEST | _NO_CHECKSUM
    frame = struct.pack(">I", head)
    made = _frame(frame, 0)
    assert made is not None
    return frame.ljust(made.size, b"\0") * (max(0, size) // made.size + 2)
