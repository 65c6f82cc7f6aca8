"""WAV files (RIFF, RIFX, RF64, BW64): where the samples are, by the chunks and the end of the file.

Writers to a pipe cannot go back to fill the sizes in, and leave 0 or the largest number there.
"""

import struct
from dataclasses import dataclass

from furnace_hpc.data.decode.sound_files.whole_sound import WholeSound
from furnace_hpc.data.packing.rejects import Unusable

_LARGE = (b"RF64", b"BW64")  # their sizes stand in a chunk ds64
MAGIC = (b"RIFF", b"RIFX", *_LARGE)
_NEAR = 1 << 16  # a size so near to 2 or 4 GiB stands for "unknown"
# format tags with one block per sample: PCM, float, A-law, mu-law, extensible
_PLAIN = (1, 3, 6, 7, 0xFFFE)
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")  # what music programs write behind a file
_KNOWN = (
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"_PMX",
    b"cue ",
    b"smpl",
    b"inst",
    b"JUNK",
    b"FLLR",
    b"PEAK",
)
# bytes of anything else behind a complete file; more may be samples that a recorder did not count
_JUNK = 4096


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def whole_wav(content: bytes) -> WholeSound:
    """Return a WAV file of the same samples whose sizes are right.

    Raises:
        Unusable: samples are missing, or may be; or there is no format or no data.
    """
    order = ">" if content[:4] == b"RIFX" else "<"
    chunks = _chunks_until_data(content, order)
    found = {chunk.name: content[chunk.start : chunk.end] for chunk in chunks}
    if b"fmt " not in found or len(found[b"fmt "]) < 16:
        raise Unusable("unreadable", "no fmt chunk before the samples")
    tag, block = struct.unpack_from(f"{order}H10xH", found[b"fmt "])
    plain, block = tag in _PLAIN, max(1, block)
    start, size = (
        chunks[-1].start,
        _data_size(content, chunks[-1], found, order, block if plain else 1),
    )
    if not plain:
        # a padding byte that no size told: the decoder would take it for a block
        size -= size % block == 1
        block = 1
    if start + size > len(content) and (len(content) - start) // block < size // block:
        raise Unusable(
            "truncated", f"{(len(content) - start) // block:,} of {size // block:,} samples"
        )
    data = memoryview(content)[start : start + size]
    kept = b"".join(
        name + struct.pack(f"{order}I", len(value)) + value + bytes(len(value) % 2)
        for name, value in found.items()
        if name in (b"fmt ", b"fact")
    )
    sizes = struct.pack(f"{order}I", min(4 + len(kept) + 8 + len(data), 0xFFFF_FFFF))
    head = (b"RIFX" if order == ">" else b"RIFF") + sizes + b"WAVE" + kept + b"data"
    made = b"".join((head, struct.pack(f"{order}I", len(data)), data))
    return WholeSound(made, fewest=len(data) // block if plain else 0)


def _chunks_until_data(content: bytes, order: str) -> list[_Chunk]:
    """The chunks up to the first one with samples, which is the last of the list."""
    chunks, place = list[_Chunk](), 12
    while chunk := _chunk_at(content, place, order):
        chunks.append(chunk)
        if chunk.name == b"data":
            return chunks
        place = _behind(content, chunk, order)
    raise Unusable("unreadable", f"no data chunk at byte {place:,}")


def _chunk_at(content: bytes, place: int, order: str) -> _Chunk | None:
    if place + 8 > len(content):
        return None
    name, size = struct.unpack_from(f"{order}4sI", content, place)
    fits = name == b"data" or place + 8 + size <= len(content)
    named = all(32 <= letter < 127 for letter in name)
    return _Chunk(name, place + 8, size) if fits and named else None


def _behind(content: bytes, chunk: _Chunk, order: str) -> int:
    """Where the next chunk begins: at an even place, though some writers leave the padding byte out."""
    if chunk.size % 2 and (
        _chunk_at(content, chunk.end + 1, order) or not _chunk_at(content, chunk.end, order)
    ):
        return min(chunk.end + 1, max(chunk.end, len(content)))
    return chunk.end


def _data_size(
    content: bytes, data: _Chunk, found: dict[bytes, bytes], order: str, block: int
) -> int:
    """Bytes of samples that the file has, or should have.

    Raises:
        Unusable: the sizes in the header contradict each other.
    """
    riff, size = struct.unpack_from(f"{order}I", content, 4)[0], data.size
    if content[:4] in _LARGE and size == 0xFFFF_FFFF and len(found.get(b"ds64", b"")) >= 16:
        riff, size = struct.unpack_from("<QQ", found[b"ds64"])
    chunk = _Chunk(b"data", data.start, size)
    # 0 may be true
    if _unknown(size) and not (size == 0 and _walk(content, chunk, order) >= len(content)):
        # many write the size of the file, which is 8 too many
        if not _unknown(riff) and riff > len(content) + 1:
            raise Unusable("truncated", f"{len(content):,} of {riff + 8:,} bytes")
        return len(content) - data.start
    if chunk.end < len(content):
        if size % block:
            raise Unusable("unreadable", f"{size:,} bytes of samples, wanted a multiple of {block}")
        _check_rest(content, chunk, riff, order, block)
    return size


def _unknown(size: int) -> bool:
    return (
        size == 0
        or abs(size - 2**31) <= _NEAR
        or 2**32 - _NEAR <= size < 2**32
        or size == 2**64 - 1
    )


def _walk(content: bytes, chunk: _Chunk, order: str) -> int:
    """Where the chunks behind this one end."""
    place = _behind(content, chunk, order)
    while following := _chunk_at(content, place, order):
        if following.name == b"data" and following.size:
            raise Unusable("unreadable", f"a second data chunk at byte {place:,}, wanted one")
        place = _behind(content, following, order)
    return place


def _check_rest(content: bytes, data: _Chunk, riff: int, order: str, block: int) -> None:
    """Raise Unusable where what follows the samples may be samples too."""
    end = _walk(content, data, order)
    rest = content[end:]
    if not rest:
        return
    declared = riff + 8
    # many write the file's size, 8 too many
    agreed = end - 1 <= declared <= end + 8 and declared < len(content)
    harmless = rest.startswith(_TAGS) or not rest.strip(b"\0") or len(rest) <= _JUNK
    # a chunk at the end that is not whole
    cut = rest.startswith(_KNOWN) and declared > len(content) + 1
    if len(rest) >= block and not (agreed and harmless) and not cut:
        raise Unusable(
            "unreadable",
            f"{len(rest):,} bytes behind the samples are no chunk: the sizes are wrong",
        )
