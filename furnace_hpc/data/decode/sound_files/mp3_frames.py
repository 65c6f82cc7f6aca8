"""Read the headers of MP3 frames (MPEG audio), and find the first frame of a file."""

import re

LAYER_3, _LAYER_2, _LAYER_1 = 1, 2, 3  # codes in a header
MPEG_1 = 3  # code in a header
_KBIT_PER_S = {  # (MPEG 1, layer) -> bit rates by code
    (True, _LAYER_1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, _LAYER_2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, LAYER_3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, _LAYER_1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, _LAYER_2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, LAYER_3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)
_SHIFTS = {3: 0, 2: 1, 0: 2}  # MPEG 1, 2, 2.5 -> how often the rates are halved
_FIXED = 0xFFFE0C00  # bits that all frames of a file share: sync, version, layer, rate
_MODE = 3 << 6  # mono if both bits are set
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_ROW = 3  # consecutive frames that are no coincidence


def frame_bytes(head: int) -> int:
    """Return the bytes of a frame with this header. 0 if it is no header."""
    version, layer, bitrate, rate = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer == 0 or bitrate in (0, 15) or rate == 3:
        return 0
    padding, bits_per_s = head >> 9 & 1, _KBIT_PER_S[version == MPEG_1, layer][bitrate] * 1000
    rate_hz = _RATES_HZ[rate] >> _SHIFTS[version]
    if layer == _LAYER_1:
        return (12 * bits_per_s // rate_hz + padding) * 4
    return num_samples(head) // 8 * bits_per_s // rate_hz + padding


def num_samples(head: int) -> int:
    """Return the samples of a frame with this header."""
    version, layer = head >> 19 & 3, head >> 17 & 3
    if layer == _LAYER_1:
        return 384
    if version == MPEG_1 or layer == _LAYER_2:
        return 1152
    return 576


def bytes_like(header: bytes, first: int) -> int:
    """Return the bytes of a frame with this header.

    0 if it is no header, or does not belong to a file with the first header `first`.
    """
    head = int.from_bytes(header, "big")
    same = (head ^ first) & _FIXED == 0 and is_mono(head) == is_mono(first)
    if not same or len(header) != 4:
        return 0
    return frame_bytes(head)


def is_mono(head: int) -> bool:
    """Whether a frame with this header has one channel."""
    return head & _MODE == _MODE


def first_frame(content: bytes, begin: int, stop: int) -> int | None:
    """Return the offset of the first row of frames. None if none begins before `stop`."""
    seen = set[int]()
    for match in _SYNC.finditer(content, begin, stop):
        place = match.start()
        if place not in seen and _row_length(content, place, seen) >= _ROW:
            return place
    return None


def reaches(content: bytes, place: int, end: int) -> bool:
    """Whether consecutive frames begin at `place`, and one of them ends at `end`."""
    first = int.from_bytes(content[place : place + 4], "big")
    while place < end and (size := bytes_like(content[place : place + 4], first)):
        place += size
    return place == end


def _row_length(content: bytes, place: int, seen: set[int]) -> int:
    """Count the frames from this offset, up to a small number. Add their offsets to `seen`."""
    first, count = int.from_bytes(content[place : place + 4], "big"), 0
    while count < _ROW and (size := bytes_like(content[place : place + 4], first)):
        if place + size > len(content):
            break
        seen.add(place)
        place, count = place + size, count + 1
    return count
