"""Turn images and waveforms into stored arrays.

Shapes: N samples, C channels, K coefficients, F frames.
"""

from functools import lru_cache
from typing import Any

import librosa
import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.manifest import Statistics

TOP_DB = 80.0  # librosa's default: the floor is so far below a clip's loudest bin
NUM_BANDS = 128  # librosa's default number of mel bands
WINDOW = 2048  # librosa's default window of a Fourier transform, in samples


def num_frames(num_samples: int, hop: int = 512) -> int:
    """Return the number of frames: librosa centres one on every hop, the first on sample 0."""
    return 1 + num_samples // hop


def mfcc(
    waves: NDArray[np.float32],
    *,
    sample_rate: int = 16_000,
    num_coefficients: int = 40,
    hop: int = 512,
    window: int = WINDOW,
) -> NDArray[np.float32]:
    """Return MFCC [N, K, F] of equally long clips, the same as librosa's of each single clip.

    Args:
        waves: mono clips [N, samples] at `sample_rate` Hz.
        sample_rate: in Hz.
        num_coefficients: K, computed from 128 mel bands.
        hop: samples from one frame to the next.
        window: samples of one frame's Fourier transform.
    """
    decibels = log_mel(
        waves, sample_rate=sample_rate, num_coefficients=NUM_BANDS, hop=hop, window=window
    )
    return np.asarray(librosa.feature.mfcc(S=decibels, n_mfcc=num_coefficients), dtype=np.float32)


def log_mel(
    waves: NDArray[np.float32], *, sample_rate: int, num_coefficients: int, hop: int, window: int
) -> NDArray[np.float32]:
    """Return mel power in decibels [N, K bands, F] of waves [N, samples].

    Values are cut off 80 dB below each clip's loudest bin.
    """
    power = np.abs(librosa.stft(waves, n_fft=window, hop_length=hop)) ** 2
    # The same bits as librosa.feature.melspectrogram, which computes the filters again for every
    # clip. That is an eighth of its time.
    mel = np.einsum(
        "...ft,mf->...mt", power, _mel_filters(sample_rate, window, num_coefficients), optimize=True
    )
    decibels = librosa.power_to_db(mel, top_db=None)
    # power_to_db has one floor for the whole array. A clip must not depend on its batch.
    floor = decibels.max(axis=(-2, -1), keepdims=True) - TOP_DB
    return np.asarray(np.maximum(decibels, floor), dtype=np.float32)


@lru_cache(maxsize=4)
def _mel_filters(sample_rate: int, window: int, num_bands: int) -> NDArray[np.float32]:
    return np.asarray(librosa.filters.mel(sr=sample_rate, n_fft=window, n_mels=num_bands))  # type: ignore[attr-defined]


def to_uint8(
    values: NDArray[np.floating[Any]], low: float = 0.0, high: float = 1.0
) -> NDArray[np.uint8]:
    """Map [low, high] linearly to 0..255, round, and clip values outside."""
    scaled = (values - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def channel_statistics(values: NDArray[Any]) -> Statistics:
    """Return mean and deviation per channel of values [N, C, ...], in stored units."""
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    mean = values.mean(axis=axes, dtype=np.float64)
    deviation = values.std(axis=axes, dtype=np.float64)
    return Statistics(mean=tuple(mean.tolist()), std=tuple(np.maximum(deviation, 1e-6).tolist()))
