"""Make sound files of all formats, and WAV files from single chunks."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from furnace_hpc.data.decode.audio import SoundKnobs, read_wave
from furnace_hpc.data.packing.rejects import Unusable

SOUND = SoundKnobs()
RATE = 16_000
NOISE = np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
UNKNOWN = (
    0,
    0x7FFF_F000,
    0x7FFF_F024,
    0x7FFF_FFFF,
    0x8000_0000,
    0x8000_0024,
    0xFFFF_FFF7,
    0xFFFF_FFFF,
)
WAV_SUBTYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")


def encoded(
    kind: str, subtype: str, samples: int = 20_000, channels: int = 1, rate: int = RATE, **more
) -> bytes:
    soundfile.write(
        file := io.BytesIO(),
        np.stack([NOISE[:samples]] * channels, 1),
        rate,
        format=kind,
        subtype=subtype,
        **more,
    )
    return file.getvalue()


def mp3(
    mode: str = "VARIABLE", rate: int = RATE, samples: int = 80_000, channels: int = 1
) -> bytes:
    return encoded(
        "MP3", "MPEG_LAYER_III", samples, channels, rate, bitrate_mode=mode, compression_level=0.5
    )  # with an info frame


def decoded(content: bytes, tmp_path: Path, name: str = "a.bin") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return read_wave(tmp_path / name, SOUND)


def refusal(content: bytes, tmp_path: Path) -> Unusable:
    with pytest.raises(Unusable) as caught:
        decoded(content, tmp_path)
    return caught.value


def with_sizes(content: bytes, riff: int | None = None, data: int | None = None) -> bytes:
    """The WAV file with other sizes of the RIFF chunk and of the data chunk."""
    made, place = bytearray(content), content.index(b"data")
    for where, size in ((4, riff), (place + 4, data)):
        if size is not None:
            made[where : where + 4] = struct.pack("<I", size)
    return bytes(made)


def chunk(name: bytes, content: bytes, padding: bytes = b"") -> bytes:
    return name + struct.pack("<I", len(content)) + content + padding


def wav(*chunks: bytes, riff: int | None = None) -> bytes:
    """A WAV of these chunks after the fmt chunk of 16-bit mono."""
    body = (
        b"WAVE"
        + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
        + b"".join(chunks)
    )
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


PCM = (NOISE[:4000] * 2**15).astype("<i2")
HEARD = PCM / np.float32(2**15)
DATA, LIST = (
    chunk(b"data", PCM.tobytes()),
    chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 4) + b"me\0\0"),
)


def with_total(content: bytes, samples: int) -> bytes:
    """The FLAC file with this number of samples in its header (36 bits)."""
    fields = int.from_bytes(content[18:26], "big")
    return content[:18] + (fields >> 36 << 36 | samples).to_bytes(8, "big") + content[26:]


def with_frames(content: bytes, frames: int) -> bytes:
    """The MP3 file with this number of frames in its info frame."""
    place = max(content.find(b"Xing"), content.find(b"Info")) + 8
    return content[:place] + struct.pack(">I", frames) + content[place + 4 :]
