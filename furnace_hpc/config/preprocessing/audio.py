"""What an audio encoder needs: waveforms, or the features of an extractor of transformers."""

from typing import Any

from pydantic import Field, ValidationError

from furnace_hpc.config.preprocessing.files import (
    FEATURE_EXTRACTOR,
    PREPROCESSOR,
    PROCESSOR,
    Needs,
    bad_file,
    file_hashes,
    preprocessor_settings,
    read_json,
)
from furnace_hpc.config.pretrained_files import CONFIG

FILES = (PREPROCESSOR, PROCESSOR)
WAVEFORM = "Wav2Vec2FeatureExtractor"
# Class of transformers -> the settings that decide its features, with their defaults.
EXTRACTORS: dict[str, dict[str, Any]] = {
    "ASTFeatureExtractor": {
        "sampling_rate": 16_000,
        "num_mel_bins": 128,
        "max_length": 1024,
        "do_normalize": True,
        "mean": -4.2677393,
        "std": 4.5689974,
    },
    "WhisperFeatureExtractor": {
        "sampling_rate": 16_000,
        "feature_size": 80,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "padding_value": 0.0,
    },
    "ClapFeatureExtractor": {
        "sampling_rate": 48_000,
        "feature_size": 64,
        "hop_length": 480,
        "max_length_s": 10,
        "fft_window_size": 1024,
        "frequency_min": 0,
        "frequency_max": 14_000,
        "truncation": "fusion",
        "padding": "repeatpad",
    },
    WAVEFORM: {"sampling_rate": 16_000, "do_normalize": True},
}
_OF_MODEL = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
    **dict.fromkeys(("clap", "clap_audio_model"), "ClapFeatureExtractor"),
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech", "sew"), WAVEFORM),
    **dict.fromkeys(("data2vec-audio", "unispeech-sat", "sew-d", "wav2vec2-conformer"), WAVEFORM),
}


class AudioNeeds(Needs):
    """The input of an audio encoder."""

    extractor: str = Field(description="class of transformers")
    settings: dict[str, Any] = Field(description="its settings")

    @property
    def is_waveform(self) -> bool:
        """Whether the encoder takes samples of the sound itself."""
        return self.extractor == WAVEFORM

    @property
    def sample_rate_hz(self) -> int:
        """Samples per second of the sound."""
        return int(self.settings["sampling_rate"])

    @property
    def normalises(self) -> bool:
        """Waveforms: whether each sound gets mean 0 and variance 1."""
        return bool(self.settings["do_normalize"])

    @property
    def shape(self) -> tuple[int, int]:
        """Bands and frames of the features of every sound."""
        found = self.settings
        if "num_mel_bins" in found:
            return found["num_mel_bins"], found["max_length"]
        if "chunk_length" in found:
            frames = found["chunk_length"] * self.sample_rate_hz // found["hop_length"]
            return found["feature_size"], frames
        samples = found["max_length_s"] * self.sample_rate_hz
        return found["feature_size"], samples // found["hop_length"] + 1

    @property
    def samples(self) -> int:
        """Samples of a sound that can change its features. The rest is cut."""
        found = self.settings
        if "num_mel_bins" in found:  # a frame every 10 ms, of 25 ms
            return int((found["max_length"] + 3) * max(160, self.sample_rate_hz // 100))
        seconds = found.get("chunk_length") or found["max_length_s"]
        return int(seconds * self.sample_rate_hz)

    def describe(self) -> str:
        """Return the settings in a few words."""
        rate = f"{self.sample_rate_hz:,} Hz"
        if self.is_waveform:
            scale = "mean 0 and variance 1" if self.normalises else "full scale 1"
            return f"waveforms at {rate} with {scale}"
        bands, frames = self.shape
        other = ", ".join(
            f"{key} {value}"
            for key, value in self.settings.items()
            if EXTRACTORS[self.extractor][key] != value and key != "sampling_rate"
        )
        return (
            f"{bands} bands and {frames} frames of {self.extractor} at {rate}"
            f"{f' ({other})' if other else ''}"
        )


def audio_needs(name: str) -> AudioNeeds | None:
    """Return what an audio encoder needs. None if the folder has no feature extractor.

    Raises:
        ConfigError: a file cannot be read, or the feature extractor is of an unknown kind.
    """
    given = preprocessor_settings(name, FEATURE_EXTRACTOR)
    if given is None or "sampling_rate" not in given:
        return None
    model = str((read_json(name, CONFIG) or {}).get("model_type", ""))
    named = str(given.get("feature_extractor_type") or _OF_MODEL.get(model, ""))
    if named not in EXTRACTORS:
        raise bad_file(
            name,
            f"its feature extractor {named or 'without a name'} is not supported",
            f"Choose an encoder with one of {', '.join(EXTRACTORS)}",
        )
    if given.get("dither"):
        raise bad_file(name, "its feature extractor adds random noise (dither)", "Set dither: 0.0")
    settings = EXTRACTORS[named]
    try:
        needs = AudioNeeds(
            extractor=named,
            settings={key: given.get(key, value) for key, value in settings.items()},
        )
        if not needs.is_waveform and not 0 < needs.samples <= 600 * needs.sample_rate_hz:
            raise ValueError(f"{needs.samples} samples")
    except (ValidationError, TypeError, ValueError, ZeroDivisionError) as error:
        why = str(error).splitlines()[0]
        raise bad_file(
            name, f"its feature extractor has odd settings ({why})", "Fetch it again"
        ) from None
    return needs


def audio_files(name: str) -> dict[str, str]:
    """Return file -> SHA-256 of the files with the settings."""
    return file_hashes(name, FILES)
