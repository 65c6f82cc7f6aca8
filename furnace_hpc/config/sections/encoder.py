"""The sections `model.text`, `model.image`, `model.audio`: the encoder of one modality."""

from pydantic import Field

from furnace_hpc.config.base import ADDED_LATER, Config


class EncoderConfig(Config):
    """The encoder of a modality, and how it is trained."""

    encoder: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=ADDED_LATER,
        description="a trained Hugging Face encoder: a folder, or a name in the hub's cache. "
        "random:FAMILY has random weights, such as random:roberta [the older keys, such as "
        "text_weights]",
    )
    allow_missing: tuple[str, ...] = Field(
        default=(),
        json_schema_extra=ADDED_LATER,
        description="weights that the files may lack, with * for any characters, such as "
        "[encoder.layer.11.*]. They start from random values",
    )
    allow_unused: tuple[str, ...] = Field(
        default=(),
        json_schema_extra=ADDED_LATER,
        description="weights of the encoder in the files that the network may leave out, with * "
        "for any characters",
    )
