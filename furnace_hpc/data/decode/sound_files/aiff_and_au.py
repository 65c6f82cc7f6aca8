"""Check AIFF and AU files: how many samples they must hold."""

import struct

from furnace_hpc.data.decode.sound_files.whole_sound import WholeSound
from furnace_hpc.data.packing.rejects import Reason, Unusable

_UNKNOWN = (0, 0xFFFF_FFFF)  # size in the header of an AU file that was written to a pipe


def whole_aiff(content: bytes) -> WholeSound:
    """Return the file, with the number of samples in its COMM chunk.

    Raises:
        Unusable: it has no COMM chunk.
    """
    place = 12
    while place + 14 <= len(content):
        name, size = struct.unpack_from(">4sI", content, place)
        if name == b"COMM":
            return WholeSound(content, fewest=struct.unpack_from(">I", content, place + 10)[0])
        place += 8 + size + size % 2
    raise Unusable("unreadable", "no COMM chunk")


def whole_au(content: bytes) -> WholeSound:
    """Return the file with the right size in its header.

    Raises:
        Unusable: the samples do not end at the end of the file.
    """
    if len(content) < 24:
        raise Unusable("truncated", "the file ends in its header")
    start, size = struct.unpack_from(">II", content, 4)
    held = len(content) - start
    if size in _UNKNOWN and held > 0:
        return WholeSound(content[:8] + struct.pack(">I", held) + content[12:])
    if size != held:
        reason: Reason = "truncated" if size > held else "unreadable"
        raise Unusable(reason, f"{held:,} of {size:,} bytes of samples")
    return WholeSound(content)
