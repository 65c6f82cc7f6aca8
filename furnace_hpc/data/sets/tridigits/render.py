"""Render TriDigits samples: pixels and waveforms.

The noise of a sample depends on (seed, sample id) only, not on the order or the number of workers.
Shapes: N samples, K coefficients, F frames, S waveform samples.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft

from furnace_hpc.data.decode.features import mfcc, to_uint8
from furnace_hpc.data.sets.tridigits.plan import SplitPlan, TriDigitsKnobs
from furnace_hpc.data.sets.tridigits.speech import SAMPLE_RATE, WINDOW_SAMPLES, Utterance, Wave

HOP = 512
NUM_COEFFICIENTS = 40
IMAGE_NOISE, AUDIO_NOISE, SPEECH, PLAN = range(4)  # independent random streams of one seed
Spoken = dict[tuple[str, str, int], Wave]  # voice, accent, digit


def stream(knobs: TriDigitsKnobs, *key: int) -> np.random.SeedSequence:
    """Return the seed of a stream, or of a sample in a stream. Parts of a pool have their own."""
    if knobs.pool:
        key += knobs.part_and_parts
    return np.random.SeedSequence(knobs.seed, spawn_key=key)


def spoken_of(utterances: list[Utterance]) -> Spoken:
    """Return (voice, accent, digit) -> waveform of deviation 1."""
    return {(u.voice, u.accent, u.digit): u.waveform / u.waveform.std() for u in utterances}


def render_images(
    knobs: TriDigitsKnobs, plan: SplitPlan, rows: range, glyphs: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Render images [N, 1, 32, 32]: a glyph of 24x24 pixels, shifted, dimmed, occluded, noisy."""
    images = np.zeros((len(rows), 1, 32, 32))
    for image, row in zip(images, rows, strict=True):
        rng = np.random.default_rng(stream(knobs, IMAGE_NOISE, int(plan.sample_id[row])))
        top, left = rng.integers(2, 7, size=2)
        image[0, top : top + 24, left : left + 24] = glyphs[plan.image[row]] * rng.uniform(0.6, 1.0)
        if rng.random() < knobs.occlusion:
            width = rng.integers(10, 17)
            start = rng.integers(0, 33 - width)
            image[0, :, start : start + width] = 0.0
        image += rng.normal(0.0, knobs.image_noise, image.shape)
    return to_uint8(images, low=-1.0, high=2.0)


def render_sounds(
    knobs: TriDigitsKnobs, plan: SplitPlan, rows: range, spoken: Spoken
) -> NDArray[np.float16]:
    """Render MFCC [N, K, F]."""
    waves = render_waves(knobs, plan, rows, spoken)
    coefficients = mfcc(waves, sample_rate=SAMPLE_RATE, num_coefficients=NUM_COEFFICIENTS, hop=HOP)
    return coefficients.astype(np.float16)


def render_waves(
    knobs: TriDigitsKnobs, plan: SplitPlan, rows: range, spoken: Spoken
) -> NDArray[np.float32]:
    """Render waveforms [N, S]: speech at a random time, coloured noise, and +-6 dB of gain."""
    waves = np.zeros((len(rows), WINDOW_SAMPLES), np.float32)
    for wave, row in zip(waves, rows, strict=True):
        rng = np.random.default_rng(stream(knobs, AUDIO_NOISE, int(plan.sample_id[row])))
        speech = spoken[plan.voice[row], plan.accent[row], int(plan.audio_digit[row])]
        start = rng.integers(0, WINDOW_SAMPLES - len(speech) + 1)
        wave[start : start + len(speech)] = speech
        wave += coloured_noise(rng, rng.uniform(0.0, 1.5)) * np.float32(10 ** (-knobs.snr_db / 20))
        wave *= np.float32(10 ** (rng.uniform(-6.0, 6.0) / 20))
    return waves


def coloured_noise(rng: np.random.Generator, exponent: float) -> Wave:
    """Return noise [S] of deviation 1 with the power spectrum 1/f^exponent."""
    num_bins = WINDOW_SAMPLES // 2 + 1
    parts = rng.standard_normal((2, num_bins), dtype=np.float32)
    amplitude = np.arange(num_bins, dtype=np.float32)
    amplitude[1:] **= np.float32(-exponent / 2)  # bin 0, the constant part, stays 0
    noise = irfft((parts[0] + 1j * parts[1]) * amplitude, n=WINDOW_SAMPLES)
    return np.asarray(noise / noise.std(), dtype=np.float32)
