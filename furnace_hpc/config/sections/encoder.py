"""The sections `model.text`, `model.image`, `model.audio`: the encoder of one modality."""

from typing import Any

from pydantic import Field, model_validator

from furnace_hpc.config.base import ADDED_LATER, Config
from furnace_hpc.config.own_code.references import is_import_path


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
    encoder_args: dict[str, Any] = Field(
        default={},
        json_schema_extra=ADDED_LATER,
        description="parameter -> value, if encoder is your own: package.module:Class of the "
        "grid's `code`",
    )

    @model_validator(mode="after")
    def _own_encoder(self) -> "EncoderConfig":
        if self.encoder_args and not is_import_path(self.encoder):
            raise ValueError(
                f"encoder_args are for your own encoder, and encoder is {self.encoder}. Remove them"
            )
        return self
