"""The sections `model.text`, `model.image`, `model.audio`: the encoder of one modality."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from furnace_hpc.config.base import ADDED_LATER, Config, no_duplicates
from furnace_hpc.config.own_code.references import Arguments, is_import_path


def _freeze(value: Any) -> Any:
    """Validate `freeze`, so that an error has one reason."""
    if value is None or value in ("all", "embeddings"):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"freeze is {value!r}. Write all, embeddings, or a number of layers of at least 1"
        )
    return value


Freeze = Annotated[Literal["all", "embeddings"] | int | None, BeforeValidator(_freeze)]


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2022). The encoder's own weights are frozen."""

    rank: int = Field(default=8, ge=1, description="rank of an adapter's two matrices")
    alpha: float = Field(
        default=16.0, gt=0, description="an adapter's output is multiplied by alpha / rank"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of an adapter's input")
    targets: Annotated[tuple[str, ...], AfterValidator(no_duplicates)] = Field(
        default=(),
        description="ends of the names of the layers with an adapter, such as query, value "
        "[all linear layers]",
    )
    dora: bool = Field(
        default=False,
        description="also train the length of each column of a weight (DoRA, Liu et al. 2024)",
    )


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
    freeze: Freeze = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="weights of the encoder that are not trained: all, embeddings, or a number N "
        "for the embeddings and the first N layers. Frozen layers have no dropout [none]",
    )
    lr_multiplier: float = Field(
        default=1.0,
        gt=0,
        json_schema_extra=ADDED_LATER,
        description="learning rate of the encoder, as a multiple of optimizer.lr",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        json_schema_extra=ADDED_LATER,
        description="of L layers, layer k learns at the rate times layer_decay^(L + 1 - k), and "
        "the embeddings at the rate times layer_decay^(L + 1)",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        json_schema_extra=ADDED_LATER,
        description="compute the activations of the encoder's layers again in backward",
    )
    cache_features: bool = Field(
        default=False,
        json_schema_extra=ADDED_LATER,
        description="compute the outputs of an encoder with freeze: all once per pack, and read "
        "them from files in training and evaluation",
    )
    lora: LoraConfig | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="train low-rank adapters instead of the encoder's own weights. Needs the "
        "package peft [off]",
    )

    @model_validator(mode="after")
    def _combinations(self) -> "EncoderConfig":
        if self.freeze is not None and self.lora:
            raise ValueError(
                f"lora already freezes the encoder's own weights, and freeze is {self.freeze}. "
                "Remove one of them"
            )
        if self.cache_features and self.freeze != "all":
            trained = f"freeze is {self.freeze or 'not set'}"
            if self.lora:
                trained = "lora trains adapters in it"
            raise ValueError(
                f"cache_features stores the outputs of an encoder that is not trained, and "
                f"{trained}. Write freeze: all, or remove cache_features"
            )
        if self.freeze != "all":
            return self
        for key in ("lr_multiplier", "layer_decay", "gradient_checkpointing"):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {value}, but freeze: all leaves nothing to train. Remove {key}"
                )
        return self

    @property
    def needs_layers(self) -> str:
        """The first key that only an encoder with layers has, or nothing."""
        if self.freeze not in (None, "all"):
            return f"freeze: {self.freeze}"
        for key in ("layer_decay", "gradient_checkpointing", "lora"):
            if getattr(self, key) != type(self).model_fields[key].default:
                return key
        return ""

    encoder_args: Arguments = Field(
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
