"""Store sounds for encoders: as waveforms, or as features of an extractor of transformers.

K bands, F frames, S samples.
"""

import importlib
import json
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from furnace_hpc.config.manifest import Statistics
from furnace_hpc.config.preprocessing.audio import AudioNeeds
from furnace_hpc.data.decode.audio import Wave
from furnace_hpc.data.packing.rejects import Unusable

FULL_SCALE = 1 << 15  # of 16-bit samples
FAMILIES = {
    "ASTFeatureExtractor": "audio_spectrogram_transformer",
    "WhisperFeatureExtractor": "whisper",
    "ClapFeatureExtractor": "clap",
}


class WaveformKnobs(BaseModel):
    """All settings that decide a stored waveform."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["waveform"] = "waveform"
    sample_rate_hz: int = Field(
        default=16_000, ge=1000, le=192_000, description="after resampling, in Hz"
    )
    samples: int = Field(ge=1, description="samples stored (S). Longer sounds are cut")
    channels: Literal["mean", "first"] = Field(
        default="mean", description="how stereo becomes mono"
    )
    normalises: bool = Field(
        default=False, description="whether batches have mean 0 and variance 1 per sound"
    )

    @property
    def preload(self) -> tuple[str, ...]:
        """Slow modules that `stored` imports."""
        return ()

    @property
    def statistics(self) -> Statistics | None:
        """Mean and deviation by which batches are standardised. None: of each sound by itself."""
        return None

    def blank(self) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """Return silence [S], and the length of an absent sound."""
        return np.zeros(self.samples, np.int16), np.array(1, np.int32)

    def stored(self, wave: Wave) -> tuple[NDArray[np.int16], int]:
        """Return 16-bit samples [S], zeros after the end, and the true length in samples."""
        wave = wave[: self.samples]
        stored = np.zeros(self.samples, np.int16)
        scaled = np.rint(wave.astype(np.float64) * FULL_SCALE)
        stored[: len(wave)] = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1)
        return stored, len(wave)


class FeatureKnobs(BaseModel):
    """All settings that decide the stored features of a sound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["features"] = "features"
    extractor: str = Field(description="class of transformers")
    settings: str = Field(description="its settings, as JSON")
    bands: int = Field(ge=1, description="K")
    frames: int = Field(ge=1, description="F, of every sound")
    sample_rate_hz: int = Field(ge=1000, description="after resampling, in Hz")
    samples: int = Field(ge=1, description="samples that are used. Longer sounds are cut")
    channels: Literal["mean", "first"] = Field(
        default="mean", description="how stereo becomes mono"
    )

    @property
    def preload(self) -> tuple[str, ...]:
        """Slow modules that `stored` imports."""
        return (_module(self.extractor),)

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation by which batches are standardised: the extractor has done it."""
        return Statistics(mean=(0.0,) * self.bands, std=(1.0,) * self.bands)

    def blank(self) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Return zeros [K, F], and the length of an absent sound."""
        return np.zeros((self.bands, self.frames), np.float32), np.array(1, np.int16)

    def stored(self, wave: Wave) -> tuple[NDArray[np.float32], int]:
        """Return features [K, F] and F. The encoder also sees the frames after the sound's end."""
        features = _extracted(self.extractor, self.settings, wave[: self.samples])
        if features.shape != (self.bands, self.frames) or not np.isfinite(features).all():
            raise Unusable(
                "unreadable", f"the feature extractor gives {features.shape} or no numbers"
            )
        return np.ascontiguousarray(features, np.float32), self.frames


EncoderSoundKnobs = WaveformKnobs | FeatureKnobs


def sound_knobs_for(needs: AudioNeeds, seconds: float | None) -> EncoderSoundKnobs:
    """Return the settings for an encoder. `seconds` cuts sounds, as the extractor itself does."""
    rate = needs.sample_rate_hz
    if needs.is_waveform:
        assert seconds is not None
        return WaveformKnobs(
            sample_rate_hz=rate, samples=round(seconds * rate), normalises=needs.normalises
        )
    bands, frames = needs.shape
    samples = needs.samples if seconds is None else min(needs.samples, round(seconds * rate))
    return FeatureKnobs(
        extractor=needs.extractor,
        settings=json.dumps(needs.settings, sort_keys=True),
        bands=bands,
        frames=frames,
        sample_rate_hz=rate,
        samples=samples,
    )


def _module(extractor: str) -> str:
    family = FAMILIES[extractor]
    return f"transformers.models.{family}.feature_extraction_{family}"


@lru_cache(maxsize=2)
def _extractor(name: str, settings: str) -> Any:
    import torch

    torch.set_num_threads(1)  # packing has a process per core
    kind = getattr(importlib.import_module(_module(name)), name)
    return kind(**json.loads(settings))


def _extracted(name: str, settings: str, wave: Wave) -> NDArray[Any]:
    """Return the features [K, F] of a sound."""
    extract = _extractor(name, settings)
    made = extract(wave, sampling_rate=extract.sampling_rate, return_tensors="np")
    if name == "WhisperFeatureExtractor":
        return np.asarray(made["input_features"][0])
    if name == "ClapFeatureExtractor":  # with "fusion" there are four equal planes
        return np.asarray(made["input_features"][0][0]).T
    return np.asarray(made["input_values"][0]).T
