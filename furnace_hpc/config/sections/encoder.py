"""The sections `model.text`, `model.image`, `model.audio`: the encoder of one modality."""

from furnace_hpc.config.base import Config


class EncoderConfig(Config):
    """The encoder of a modality, and how it is trained."""
