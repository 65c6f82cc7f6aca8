"""Find the tags before, between and after the frames of an MP3 file."""

import re
import struct

from furnace_hpc.data.decode.sound_files.checked_sound import skip_id3

_ID3V1, _ID3V1_MORE, _APE, _ID3_FOOTER, _LYRICS_END = 128, 227, 32, 10, 15  # bytes
_HAS_HEADER = 1 << 31  # flag of an APE tag
_BLOCK = 1 << 12


def end_of_tags(content: bytes, place: int) -> int:
    """Return the end of the tags that begin at `place`. It may be after the end of the file."""
    while True:
        after = skip_id3(content, place)
        if content.startswith(b"TAG", after):
            after += _ID3V1
        if content.startswith(b"APETAGEX", after) and len(content) >= after + 16:
            after += _APE + struct.unpack_from("<I", content, after + 12)[0]
        if after == place:
            return place
        place = after


def begin_of_last_tags(content: bytes, least: int) -> int:
    """Return the beginning of the tags and zeros at the end of the file, not before `least`.

    Some tags have only a footer, so they are found from their end.
    """
    end = len(content)
    while True:
        begin = next((tag for tag in _begins_of_tag(content, end) if tag >= least), end)
        if begin == end:
            begin = _before_zeros(content, end, least)
        if begin == end:
            return end
        end = begin


def _before_zeros(content: bytes, end: int, least: int) -> int:
    while end > least:
        block = content[max(least, end - _BLOCK) : end]
        kept = len(block.rstrip(b"\0"))
        end -= len(block) - kept
        if kept:
            break
    return end


def _begins_of_tag(content: bytes, end: int) -> list[int]:
    """Return where the tag that ends at `end` may begin. Empty if no tag ends there."""
    for name, size in ((b"TAG", _ID3V1), (b"TAG+", _ID3V1_MORE)):
        if end >= size and content.startswith(name, end - size):
            return [end - size]
    if end >= _APE and content.startswith(b"APETAGEX", end - _APE):
        size, _, flags = struct.unpack_from("<III", content, end - _APE + 12)
        header = _APE if flags & _HAS_HEADER else 0
        return [end - max(size, _APE) - header, end - max(size, _APE)]
    if end >= _ID3_FOOTER and content.startswith(b"3DI", end - _ID3_FOOTER):
        begin = content.rfind(b"ID3", 0, end)
        return [begin] if end - _ID3_FOOTER <= skip_id3(content, begin) <= end else []
    found = re.fullmatch(rb"([0-9]{6})LYRICS200", content[max(0, end - _LYRICS_END) : end])
    if found and content.startswith(b"LYRICSBEGIN", begin := end - _LYRICS_END - int(found[1])):
        return [begin]
    return []
