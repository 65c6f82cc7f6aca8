"""The section `model`."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from furnace_hpc.config.base import ADDED_LATER, Config, ModalityName, no_duplicates
from furnace_hpc.config.encoder_families import RANDOM, families_of
from furnace_hpc.config.errors import nearest
from furnace_hpc.config.own_code.references import (
    IMPORT_PATH,
    Arguments,
    ImportPath,
    is_import_path,
    name_or_import_path,
)
from furnace_hpc.config.sections.encoder import EncoderConfig

FusionName = Literal["concat", "gated", "low_rank", "cross_attention", "bottleneck"]
FUSIONS: tuple[str, ...] = get_args(FusionName)
_FUSION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": list(FUSIONS), "type": "string"},
        {"pattern": f"^{IMPORT_PATH.pattern}$", "type": "string"},
    ]
}
Fusion = Annotated[
    str,
    AfterValidator(lambda text: name_or_import_path(text, FUSIONS)),
    WithJsonSchema(_FUSION_SCHEMA),
]


_DEFAULT_ENCODER = EncoderConfig()


class ModelConfig(Config):
    """The fusion network."""

    modalities: Annotated[tuple[ModalityName, ...], AfterValidator(no_duplicates)] = Field(
        default=("text", "image", "audio"),
        min_length=1,
        description="inputs of the network; only these have encoders",
    )
    network: ImportPath | None = Field(
        default=None,
        json_schema_extra=ADDED_LATER,
        description="your own network, as package.module:Class of the grid's `code` [encoders, "
        "fusion and heads, as the other keys say]",
    )
    network_args: Arguments = Field(
        default={},
        json_schema_extra=ADDED_LATER,
        description="parameter -> value, for your own network",
    )
    fusion: Fusion = Field(
        default="cross_attention",
        description="how features of modalities are combined: concat, gated, low_rank, "
        "cross_attention, bottleneck, or package.module:Class of the grid's `code`",
    )
    fusion_args: Arguments = Field(
        default={},
        json_schema_extra=ADDED_LATER,
        description="parameter -> value, for your own fusion",
    )
    width: int = Field(default=64, ge=8, description="features per token (D)")
    num_heads: int = Field(
        default=4, ge=1, description="attention heads; width is a multiple of it"
    )
    feedforward: int = Field(
        default=128, ge=8, description="hidden width of the feed-forward blocks"
    )
    fusion_layers: int = Field(
        default=1,
        ge=0,
        description="attention layers of cross_attention and bottleneck. bottleneck with 0 is late "
        "fusion",
    )
    rank: int = Field(default=8, ge=1, description="low_rank: number of factors (R)")
    bottleneck_tokens: int = Field(
        default=4, ge=1, description="bottleneck: tokens through which modalities exchange features"
    )
    text_layers: int = Field(default=2, ge=1, description="BERT with random weights: layers")
    image_encoder: Literal["cnn", "vit"] = Field(
        default="cnn", description="convolutions, or transformers' ViT"
    )
    image_tokens: int = Field(
        default=4, ge=1, description="cnn: tokens (a square number) after adaptive pooling"
    )
    image_layers: int = Field(default=2, ge=1, description="vit with random weights: layers")
    image_patch: int = Field(
        default=8, ge=1, description="vit with random weights: side of a patch in pixels"
    )
    audio_encoder: Literal["cnn", "transformer"] = Field(
        default="cnn", description="convolutions, or transformers' audio spectrogram transformer"
    )
    audio_tokens: int = Field(
        default=4, ge=1, description="cnn: tokens after pooling over valid frames"
    )
    audio_layers: int = Field(
        default=2, ge=1, description="transformer with random weights: layers"
    )
    audio_patch: int = Field(
        default=8,
        ge=1,
        description="transformer with random weights: side of a patch in coefficients and frames",
    )
    text_weights: str | None = Field(
        default=None,
        description="a trained BERT: a folder, or a name in the hub's cache [random weights]",
    )
    image_weights: str | None = Field(default=None, description="a trained ViT, likewise")
    audio_weights: str | None = Field(
        default=None, description="a trained audio spectrogram transformer, likewise"
    )
    text: EncoderConfig | None = Field(
        default=None, json_schema_extra=ADDED_LATER, description="encoder of the texts"
    )
    image: EncoderConfig | None = Field(
        default=None, json_schema_extra=ADDED_LATER, description="encoder of the images"
    )
    audio: EncoderConfig | None = Field(
        default=None, json_schema_extra=ADDED_LATER, description="encoder of the sounds"
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="dropout of features in encoders and fusion layers"
    )
    modality_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a present modality is hidden in training; at least one stays",
    )

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of num_heads {self.num_heads}. Change one"
            )
        if int(self.image_tokens**0.5) ** 2 != self.image_tokens:
            raise ValueError(
                f"image_tokens {self.image_tokens} is not a square number. Write 1, 4, 9, 16, ..."
            )
        return self

    @model_validator(mode="after")
    def _own_code(self) -> "ModelConfig":
        if self.network_args and self.network is None:
            raise ValueError("network_args are for your own network. Add network, or remove them")
        if self.network is not None and is_import_path(self.fusion):
            raise ValueError(
                f"network and fusion {self.fusion} are both your own, and a network has no other "
                "fusion. Remove one of them"
            )
        if self.fusion_args and not is_import_path(self.fusion):
            raise ValueError(
                f"fusion_args are for your own fusion, and fusion is {self.fusion}. Remove them"
            )
        return self

    @model_validator(mode="after")
    def _combinations(self) -> "ModelConfig":
        if self.fusion == "cross_attention" and self.fusion_layers == 0:
            raise ValueError(
                "fusion cross_attention got fusion_layers 0, wanted 1 or more. Raise it"
            )
        if self.fusion == "bottleneck" and self.fusion_layers == 1:
            raise ValueError(
                "fusion bottleneck with fusion_layers 1 never combines modalities: a layer reads "
                "what the layer before wrote into the bottleneck. Write 2 or more, or 0 for late "
                "fusion"
            )
        if self.image_weights and self.image_encoder != "vit":
            raise ValueError("image_weights are for a ViT. Add image_encoder: vit")
        if self.audio_weights and self.audio_encoder != "transformer":
            raise ValueError(
                "audio_weights are for an audio spectrogram transformer. Add audio_encoder: "
                "transformer"
            )
        return self

    @model_validator(mode="after")
    def _encoders(self) -> "ModelConfig":
        for modality in ("text", "image", "audio"):
            section = getattr(self, modality)
            if section is None or section.encoder is None:
                continue
            for key in (f"{modality}_encoder", f"{modality}_weights"):
                field = type(self).model_fields.get(key)
                if field and getattr(self, key) != field.default:
                    raise ValueError(
                        f"{modality}.encoder and {key} both choose the encoder. Remove one of them"
                    )
            family, known = section.encoder.removeprefix(RANDOM), families_of(modality)
            if family != section.encoder and family not in known:
                raise ValueError(
                    f"{modality}.encoder is {RANDOM}{family}; {nearest(family, known)}"
                )
        return self

    @model_validator(mode="after")
    def _layers(self) -> "ModelConfig":
        for name in ("image", "audio"):
            key, section = f"{name}_encoder", self.encoder(name)
            is_cnn = getattr(self, key) == "cnn" and not getattr(section, "encoder", None)
            if is_cnn and section.needs_layers:
                raise ValueError(
                    f"{name}.{section.needs_layers} needs an encoder with layers, and {key} is "
                    f"cnn. Change {key}, or remove it"
                )
        return self

    @model_validator(mode="after")
    def _cached_features(self) -> "ModelConfig":
        if self.network is not None and self.cached_modalities:
            raise ValueError(
                f"{self.cached_modalities[0]}.cache_features gives a network the outputs of an "
                "encoder instead of its input, and network is your own, which may read the input. "
                "Remove one of them"
            )
        return self

    @property
    def cached_modalities(self) -> tuple[str, ...]:
        """The modalities whose encoders have `cache_features`."""
        return tuple(name for name in self.modalities if self.encoder(name).cache_features)

    def encoder(self, modality: str) -> EncoderConfig:
        """How the encoder of a modality is trained."""
        return getattr(self, modality, None) or _DEFAULT_ENCODER
