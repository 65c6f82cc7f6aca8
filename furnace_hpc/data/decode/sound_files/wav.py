"""Check WAV files (RIFF, RIFX, RF64, BW64): find the samples by the chunks and the file's end.

A program that writes to a pipe cannot fill in the sizes later. It leaves 0 or the largest number.
"""

import struct
from dataclasses import dataclass

from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound
from furnace_hpc.data.packing.rejects import Unusable

_LARGE = (b"RF64", b"BW64")  # formats whose sizes are in a chunk ds64
MAGIC = (b"RIFF", b"RIFX", *_LARGE)
_NEAR = 1 << 16  # a size that is this near to 2 or 4 GiB means "unknown"
# Format tags with one block per sample: PCM, float, A-law, mu-law, extensible.
_PLAIN = (1, 3, 6, 7, 0xFFFE)
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")  # music programs append them to a file
_KNOWN = (
    b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"cue ", b"smpl", b"inst", b"JUNK",
    b"FLLR", b"PEAK",
)  # fmt: skip
# Most other bytes after a complete file. More may be samples that a recorder did not count.
_JUNK = 4096


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def check_wav(content: bytes) -> CheckedSound:
    """Return a WAV file of the same samples with correct sizes.

    Raises:
        Unusable: samples are missing or may be missing, or there is no format or no data.
    """
    file = _Wav(content)
    samples = _samples_of(file)
    if samples.end > len(content):
        held, wanted = (len(content) - samples.start) // file.block, samples.size // file.block
        if held < wanted:
            raise Unusable("truncated", f"{held:,} of {wanted:,} samples")
    data = memoryview(content)[samples.start : samples.end]
    kept = b"".join(
        name + file.pack(len(value)) + value + bytes(len(value) % 2)
        for name, value in file.found.items()
        if name in (b"fmt ", b"fact")
    )
    magic = {"<": b"RIFF", ">": b"RIFX"}[file.order]
    riff_size = min(4 + len(kept) + 8 + len(data), 0xFFFF_FFFF)
    head = magic + file.pack(riff_size) + b"WAVE" + kept + b"data" + file.pack(len(data))
    made = b"".join((head, data))
    if not file.is_plain:
        return CheckedSound(made)
    return CheckedSound(made, min_samples=len(data) // file.block)


class _Wav:
    """The chunks of a WAV file up to its samples."""

    def __init__(self, content: bytes) -> None:
        """Find the chunks.

        Raises:
            Unusable: there is no format or no data.
        """
        self.content = content
        self.order = ">" if content[:4] == b"RIFX" else "<"  # byte order, as in struct
        chunks = self._chunks_until_data()
        self.data = chunks[-1]
        self.found = {chunk.name: content[chunk.start : chunk.end] for chunk in chunks}
        if len(self.found.get(b"fmt ", b"")) < 16:
            raise Unusable("unreadable", "no fmt chunk before the samples")
        tag, block = struct.unpack_from(f"{self.order}H10xH", self.found[b"fmt "])
        self.is_plain = tag in _PLAIN
        self.coded_block = max(1, block)
        """Bytes of a block, which holds one sample if the format is plain."""
        self.block = self.coded_block if self.is_plain else 1
        """Bytes of a sample if the format is plain, else 1."""

    def pack(self, size: int) -> bytes:
        """Return a size as stored in this file."""
        return struct.pack(f"{self.order}I", size)

    def _chunks_until_data(self) -> list[_Chunk]:
        """Return the chunks up to the first one with samples."""
        chunks, place = list[_Chunk](), 12
        while chunk := self.chunk_at(place):
            chunks.append(chunk)
            if chunk.name == b"data":
                return chunks
            place = self.next_place(chunk)
        raise Unusable("unreadable", f"no data chunk at byte {place:,}")

    def chunk_at(self, place: int) -> _Chunk | None:
        """Return the chunk at this offset. None if there is none, or it does not fit."""
        if place + 8 > len(self.content):
            return None
        name, size = struct.unpack_from(f"{self.order}4sI", self.content, place)
        fits = name == b"data" or place + 8 + size <= len(self.content)
        if fits and all(32 <= letter < 127 for letter in name):
            return _Chunk(name, place + 8, size)
        return None

    def next_place(self, chunk: _Chunk) -> int:
        """Return the offset of the next chunk: even, but some programs omit the padding byte."""
        is_padded = self.chunk_at(chunk.end + 1) or not self.chunk_at(chunk.end)
        if chunk.size % 2 and is_padded:
            return min(chunk.end + 1, max(chunk.end, len(self.content)))
        return chunk.end

    def end_of_chunks(self, chunk: _Chunk) -> int:
        """Return the end of the chunks after this one.

        Raises:
            Unusable: one of them is a second data chunk.
        """
        place = self.next_place(chunk)
        while following := self.chunk_at(place):
            if following.name == b"data" and following.size:
                raise Unusable("unreadable", f"a second data chunk at byte {place:,}, wanted one")
            place = self.next_place(following)
        return place


def _samples_of(file: _Wav) -> _Chunk:
    """Return the chunk of samples with the size that the file has, or should have.

    Raises:
        Unusable: the sizes in the header contradict each other.
    """
    content, found = file.content, file.found
    riff, size = struct.unpack_from(f"{file.order}I", content, 4)[0], file.data.size
    if content[:4] in _LARGE and size == 0xFFFF_FFFF and len(found.get(b"ds64", b"")) >= 16:
        riff, size = struct.unpack_from("<QQ", found[b"ds64"])
    chunk = _Chunk(b"data", file.data.start, size)
    # a size of 0 may be correct
    is_empty = size == 0 and file.end_of_chunks(chunk) >= len(content)
    if _unknown(size) and not is_empty:
        # many programs write the size of the file, which is 8 too large
        if not _unknown(riff) and riff > len(content) + 1:
            raise Unusable("truncated", f"{len(content):,} of {riff + 8:,} bytes")
        size = len(content) - chunk.start
    elif chunk.end < len(content):
        if size % file.block:
            raise Unusable(
                "unreadable", f"{size:,} bytes of samples, wanted a multiple of {file.block}"
            )
        _check_rest(file, chunk, riff)
    if not file.is_plain and size % file.coded_block == 1:
        # a padding byte that no size counts: the decoder would read it as a block
        size -= 1
    return _Chunk(b"data", chunk.start, size)


def _unknown(size: int) -> bool:
    return (
        size == 0
        or abs(size - 2**31) <= _NEAR
        or 2**32 - _NEAR <= size < 2**32
        or size == 2**64 - 1
    )


def _check_rest(file: _Wav, data: _Chunk, riff: int) -> None:
    """Raise Unusable if the bytes after the samples may be samples too."""
    content, end = file.content, file.end_of_chunks(data)
    rest = content[end:]
    if not rest:
        return
    declared = riff + 8
    # many programs write the size of the file, which is 8 too large
    agreed = end - 1 <= declared <= end + 8 and declared < len(content)
    harmless = rest.startswith(_TAGS) or not rest.strip(b"\0") or len(rest) <= _JUNK
    cut_chunk = rest.startswith(_KNOWN) and declared > len(content) + 1
    if len(rest) >= file.block and not (agreed and harmless) and not cut_chunk:
        raise Unusable(
            "unreadable",
            f"{len(rest):,} bytes after the samples are not a chunk: the sizes are wrong",
        )
