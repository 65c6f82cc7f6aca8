"""Sound files to coefficients. Shapes: K coefficients, F frames, S samples."""

import os
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.data.preprocess import log_mel, mfcc, num_frames
from furnace_hpc.data.refusals import Unusable

Wave = NDArray[np.float32]
_BLOCK = 1 << 20  # values read at a time
# Values of one sound, 1 GiB: hours of silence take few bytes of FLAC, and a damaged header makes hours of a second.
_MOST = 1 << 28
_UNKNOWN_SIZES = (0, 0xFFFF_FFFF)  # what writers to a pipe leave in a RIFF header


class SoundKnobs(BaseModel):
    """Everything that decides the stored coefficients of a sound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: Literal["mfcc", "log_mel"] = Field(default="mfcc", description="what a coefficient is")
    coefficients: int = Field(default=40, ge=1, le=128, description="coefficients per frame (K)")
    frames: int = Field(default=640, ge=1, description="frames stored (F); longer sounds are cut, shorter ones padded")
    sample_rate_hz: int = Field(default=16_000, ge=1000, description="after resampling, in Hz")
    hop: int = Field(default=160, ge=1, description="samples from one frame to the next")
    window: int = Field(default=1024, ge=16, description="samples of one frame's Fourier transform (Hann window)")
    channels: Literal["mean", "first"] = Field(default="mean", description="how stereo becomes mono")

    @property
    def seconds(self) -> float:
        """What the stored frames span."""
        return self.frames * self.hop / self.sample_rate_hz


def read_sound(path: Path, knobs: SoundKnobs) -> tuple[NDArray[np.float16], int]:
    """Return coefficients [K, F], zeros behind the sound's end, and its true length in frames.

    Raises:
        Unusable: the file is missing, empty, truncated, no sound, or holds values that are not finite.
    """
    wave = read_wave(path, knobs)
    make = mfcc if knobs.feature == "mfcc" else log_mel
    wave = wave[: knobs.frames * knobs.hop + knobs.window]  # no frame that is kept sees further
    made = make(
        wave[None],
        sample_rate=knobs.sample_rate_hz,
        num_coefficients=knobs.coefficients,
        hop=knobs.hop,
        window=knobs.window,
    )[0]
    length = min(knobs.frames, num_frames(len(wave), knobs.hop))
    stored = np.zeros((knobs.coefficients, knobs.frames), np.float16)
    stored[:, :length] = made[:, :length]
    if not np.isfinite(stored).all():  # samples may be finite, and far too large
        raise Unusable("not finite")
    return stored, length


def read_wave(path: Path, knobs: SoundKnobs) -> Wave:
    """Return the mono waveform [S] at the wanted rate, full scale 1; raises Unusable as `read_sound` does."""
    try:
        _check_riff(path)
        with soundfile.SoundFile(path) as file:
            promised, rate = file.frames, file.samplerate
            values = _read_all(file)
    except FileNotFoundError:
        raise Unusable("missing") from None
    except (OSError, RuntimeError, ValueError, MemoryError) as error:  # a damaged header may promise any length
        if not path.exists():
            raise Unusable("missing") from None
        raise Unusable("unreadable", str(error).replace(str(path), path.name)) from None
    if len(values) == 0:
        raise Unusable("empty", "no samples")
    if promised > len(values):
        raise Unusable("truncated", f"{len(values)} of {promised} samples")
    if not np.isfinite(values).all():
        raise Unusable("not finite")
    if len(values) * knobs.sample_rate_hz > _MOST * rate:  # of a damaged header, mostly
        raise Unusable(
            "unreadable", f"{len(values):,} samples at {rate:,} Hz are {len(values) / rate / 3600:,.0f} hours"
        )
    mono = values.mean(axis=1) if knobs.channels == "mean" else values[:, 0]
    if rate != knobs.sample_rate_hz:
        mono = soxr.resample(mono, rate, knobs.sample_rate_hz)
        if len(mono) == 0:
            raise Unusable("empty", f"{len(values):,} samples at {rate:,} Hz are no sound")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read_all(file: soundfile.SoundFile) -> NDArray[np.float32]:
    """All samples [S, channels] that there are; what a header promises is not believed, a damaged one says anything."""
    blocks, left = list[NDArray[np.float32]](), _MOST // file.channels
    while len(block := file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)):
        blocks.append(block)
        left -= len(block)
        if left < 0:
            raise ValueError(f"more than {_MOST // file.channels:,} samples")
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)


def _check_riff(path: Path) -> None:
    """Raise Unusable where a WAV file is shorter than its header says: libsndfile reads what is there in silence."""
    with path.open("rb") as file:
        head = file.read(12)
        size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise Unusable("empty")
    if len(head) == 12 and head[:4] == b"RIFF" and head[8:] == b"WAVE":
        promised = struct.unpack("<I", head[4:8])[0]
        if promised not in _UNKNOWN_SIZES and promised + 8 > size + 1:  # some leave out the last padding byte
            raise Unusable("truncated", f"{size:,} of {promised + 8:,} bytes")
