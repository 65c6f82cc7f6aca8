"""Check AIFF and AU files: how many samples they must hold."""

import struct

from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound
from furnace_hpc.data.packing.rejects import Reason, Unusable

_UNKNOWN = (0, 0xFFFF_FFFF)  # size in the header of an AU file that was written to a pipe


def check_aiff(content: bytes) -> CheckedSound:
    """Return the file, with the number of samples in its COMM chunk.

    Raises:
        Unusable: it has no COMM chunk.
    """
    place = 12
    while place + 14 <= len(content):
        name, size = struct.unpack_from(">4sI", content, place)
        if name == b"COMM":
            return CheckedSound(
                content, min_samples=struct.unpack_from(">I", content, place + 10)[0]
            )
        place += 8 + size + size % 2
    raise Unusable("unreadable", "no COMM chunk")


def check_au(content: bytes) -> CheckedSound:
    """Return the file with the right size in its header.

    Raises:
        Unusable: the samples do not end at the end of the file.
    """
    if len(content) < 24:
        raise Unusable("truncated", "the file ends in its header")
    start, size = struct.unpack_from(">II", content, 4)
    held = len(content) - start
    if size in _UNKNOWN and held > 0:
        return CheckedSound(content[:8] + struct.pack(">I", held) + content[12:])
    if size != held:
        reason: Reason = "truncated" if size > held else "unreadable"
        raise Unusable(reason, f"{held:,} of {size:,} bytes of samples")
    return CheckedSound(content)
