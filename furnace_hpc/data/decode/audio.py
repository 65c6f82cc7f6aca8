"""Turn sound files into coefficients. Shapes: K coefficients, F frames, S samples."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.data.decode.features import log_mel, mfcc, num_frames
from furnace_hpc.data.decode.segments import Segment
from furnace_hpc.data.decode.sound_files.checked_sound import CheckedSound
from furnace_hpc.data.decode.sound_files.kinds import check_sound
from furnace_hpc.data.packing.rejects import Unusable

Wave = NDArray[np.float32]
_FEATURES = {"mfcc": mfcc, "log_mel": log_mel}
_BLOCK = 1 << 20  # values read at a time
# Most values of one sound (1 GiB). Hours of silence are a small FLAC file, and a damaged header
# may turn one second into hours.
_MAX_SAMPLES = 1 << 28
_EXACT_SEEK = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC")


class SoundKnobs(BaseModel):
    """All settings that decide the stored coefficients of a sound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: Literal["mfcc", "log_mel"] = Field(default="mfcc", description="kind of coefficient")
    coefficients: int = Field(default=40, ge=1, le=128, description="coefficients per frame (K)")
    frames: int = Field(
        default=640,
        ge=1,
        description="frames stored (F). Longer sounds are cut, shorter ones are padded",
    )
    sample_rate_hz: int = Field(default=16_000, ge=1000, description="after resampling, in Hz")
    hop: int = Field(default=160, ge=1, description="samples from one frame to the next")
    window: int = Field(
        default=1024, ge=16, description="samples of one frame's Fourier transform (Hann window)"
    )
    channels: Literal["mean", "first"] = Field(
        default="mean", description="how stereo becomes mono"
    )

    @property
    def seconds(self) -> float:
        """Return the duration of the stored frames."""
        return self.frames * self.hop / self.sample_rate_hz

    @property
    def preload(self) -> tuple[str, ...]:
        """Return the slow modules that `stored` imports."""
        return ("librosa.feature.spectral",)

    @property
    def statistics(self) -> None:
        """Return None: batches are standardised by the mean and deviation of the train split."""

    def blank(self) -> tuple[NDArray[np.float16], NDArray[np.int16]]:
        """Return zeros [K, F], and the length of an absent sound."""
        return np.zeros((self.coefficients, self.frames), np.float16), np.array(1, np.int16)

    def stored(self, wave: Wave) -> tuple[NDArray[np.float16], int]:
        """Return coefficients [K, F], zeros after the end, and the true length in frames."""
        return _coefficients(wave, self)


class WaveKnobs(Protocol):
    """How a sound becomes one waveform."""

    @property
    def sample_rate_hz(self) -> int:
        """Return the rate after resampling, in Hz."""

    @property
    def channels(self) -> Literal["mean", "first"]:
        """Return how stereo becomes mono."""


class StoredKnobs(WaveKnobs, Protocol):
    """How a sound is stored."""

    def stored(self, wave: Wave) -> tuple[NDArray[Any], int]:
        """Return the stored values of a waveform, and its true length."""


def read_sound(
    path: Path, knobs: StoredKnobs, segment: Segment | None = None
) -> tuple[NDArray[Any], int]:
    """Return stored values, such as coefficients [K, F], and the sound's true length.

    Raises:
        Unusable: the file is missing, empty, truncated or no sound, or a value is not finite. Or
            the segment is outside the file.
    """
    return knobs.stored(read_wave(path, knobs, segment))


def read_sound_bytes(
    content: bytes, knobs: StoredKnobs, segment: Segment | None = None
) -> tuple[NDArray[Any], int]:
    """Return the stored values of a sound file that is inside another file."""
    if not content:
        raise Unusable("empty")
    return knobs.stored(read_wave_bytes(content, knobs, segment))


def _coefficients(wave: Wave, knobs: SoundKnobs) -> tuple[NDArray[np.float16], int]:
    wave = wave[: knobs.frames * knobs.hop + knobs.window]  # stored frames use no later sample
    made = _FEATURES[knobs.feature](
        wave[None],
        sample_rate=knobs.sample_rate_hz,
        num_coefficients=knobs.coefficients,
        hop=knobs.hop,
        window=knobs.window,
    )[0]
    length = min(knobs.frames, num_frames(len(wave), knobs.hop))
    stored = np.zeros((knobs.coefficients, knobs.frames), np.float16)
    stored[:, :length] = made[:, :length]
    if not np.isfinite(stored).all():  # finite samples may be too large for float16
        raise Unusable("not finite")
    return stored, length


def read_wave(path: Path, knobs: WaveKnobs, segment: Segment | None = None) -> Wave:
    """Return the mono waveform [S] at the wanted rate, full scale 1. Errors as in `read_sound`.

    Args:
        path: a sound file.
        knobs: the settings.
        segment: the part that is decoded. None: the whole file.
    """
    content = _read_file(path)
    checked = check_sound(content)
    if checked.content is not content:
        return _wave_of(checked, knobs, segment)
    # libsndfile reads an unchanged file faster by itself: it reads each MP3 frame twice.
    return _mono(*_decode(path, checked, segment), knobs)


def read_wave_bytes(content: bytes, knobs: WaveKnobs, segment: Segment | None = None) -> Wave:
    """Return the waveform of a sound file that is inside another file, as `read_wave` does."""
    return _wave_of(check_sound(content), knobs, segment)


def _wave_of(checked: CheckedSound, knobs: WaveKnobs, segment: Segment | None) -> Wave:
    with _file_in_memory(checked.content) as descriptor:
        return _mono(*_decode(descriptor, checked, segment), knobs)


def _mono(values: NDArray[np.float32], rate: int, knobs: WaveKnobs) -> Wave:
    if len(values) == 0:
        raise Unusable("empty", "no samples")
    if not np.isfinite(values).all():
        raise Unusable("not finite")
    if len(values) * knobs.sample_rate_hz > _MAX_SAMPLES * rate:  # mostly a damaged header
        raise Unusable(
            "unreadable",
            f"{len(values):,} samples at {rate:,} Hz are {len(values) / rate / 3600:,.0f} hours",
        )
    mono = values.mean(axis=1) if knobs.channels == "mean" else values[:, 0]
    if rate != knobs.sample_rate_hz:
        mono = soxr.resample(mono, rate, knobs.sample_rate_hz)
        if len(mono) == 0:
            raise Unusable("empty", f"{len(values):,} samples at {rate:,} Hz are no sound")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read_file(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unusable("unreadable", "no regular file")
        if found.st_size > 4 * _MAX_SAMPLES:
            raise Unusable(
                "unreadable", f"{found.st_size:,} bytes, wanted {4 * _MAX_SAMPLES:,} at most"
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise Unusable("missing") from None
    except (OSError, MemoryError) as error:
        raise Unusable("unreadable", str(error).replace(str(path), path.name)) from None
    if not content:
        raise Unusable("empty")
    return content


@contextmanager
def _file_in_memory(content: bytes) -> Iterator[int]:
    """Yield the descriptor of a file with this content."""
    with os.fdopen(os.memfd_create("sound"), "wb") as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def _decode(
    source: Path | int, checked: CheckedSound, segment: Segment | None
) -> tuple[NDArray[np.float32], int]:
    """Return all samples [S, channels] or those of a segment, and their rate in Hz.

    Raises:
        Unusable: the decoder fails, or returns fewer samples than the file holds.
    """
    least = checked.min_samples
    try:
        with _Stream(source, closefd=False) as file:
            wanted = checked.samples
            if wanted is None:
                wanted = file.frames
            rate = file.samplerate
            if segment is not None:
                first, last = segment.samples(max(wanted, least), rate)
                _skip(file, first)
                wanted, least = last - first, 0
            values = _read_all(file, wanted)
    except soundfile.LibsndfileError as error:
        raise Unusable("unreadable", error.error_string) from None
    # a damaged header may declare any length
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise Unusable("unreadable", str(error)) from None
    if len(values) < max(wanted, least):
        raise Unusable("truncated", f"{len(values):,} of {max(wanted, least):,} samples")
    return values, rate


def _skip(file: soundfile.SoundFile, num_samples: int) -> None:
    """Go to a sample. Where a seek would change the following samples, decode up to it."""
    if file.format in _EXACT_SEEK:
        file.seek(num_samples)
        return
    left, at_once = num_samples, max(1, _BLOCK // file.channels)
    while left > 0 and len(block := file.read(min(left, at_once), dtype="float32")):
        left -= len(block)


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that cannot seek.

    Otherwise soundfile seeks after each block, which changes the following samples of an MP3.
    """

    def seekable(self) -> bool:
        return False


def _read_all(file: soundfile.SoundFile, wanted: int) -> NDArray[np.float32]:
    """Return up to `wanted` samples [S, channels]. The header may declare more than there are."""
    blocks, left = [np.zeros((0, file.channels), np.float32)], wanted
    most, at_once = _MAX_SAMPLES // file.channels, max(1, _BLOCK // file.channels)
    while left > 0 and len(block := file.read(min(left, at_once), dtype="float32", always_2d=True)):
        blocks.append(block)
        left -= len(block)
        if wanted - left > most:
            raise ValueError(f"more than {most:,} samples")
    return np.concatenate(blocks)
