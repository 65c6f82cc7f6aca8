"""The properties of a data set that encoders depend on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from furnace_hpc.config.manifest import Manifest
from furnace_hpc.data.decode.tokenizer import vocabulary_of


@dataclass(frozen=True)
class InputShapes:
    """The properties of a data set that the encoders depend on."""

    vocab_size: int
    pad_id: int
    image_channels: int
    audio_coefficients: int
    image_size: tuple[int, int] = (32, 32)
    audio_frames: int = 32
    """Frames of a sound. Of waveforms, which have 0 coefficients, it is the number of samples."""
    text_tokens: int = 0
    vocabulary: str | None = None
    """Fingerprint of the tokenizer's vocabulary. None if the data set does not name it."""
    architectures: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Modality -> transformers' configuration of an encoder that started from trained weights.

    Set if the caller loads all weights itself. The encoder then reads no trained weights.
    """

    @classmethod
    def of(
        cls, manifest: Manifest, architectures: Mapping[str, dict[str, Any]] | None = None
    ) -> "InputShapes":
        """The shapes of a packed data set. Those of a missing modality are 0."""
        shapes = {name: column.shape for name, column in manifest.columns.items()}
        channels, height, width = shapes.get("image", (0, 0, 0))[-3:]
        *bands, frames = shapes.get("audio", (0, 0))
        return cls(
            vocab_size=manifest.vocab_size or 0,
            pad_id=manifest.pad_id,
            image_channels=channels,
            audio_coefficients=bands[0] if bands else 0,
            image_size=(height, width),
            audio_frames=frames,
            text_tokens=shapes.get("text", (0,))[0],
            vocabulary=vocabulary_of(manifest),
            architectures=architectures or {},
        )
