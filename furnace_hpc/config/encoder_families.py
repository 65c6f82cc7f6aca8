"""The families of Hugging Face encoders: all facts in which they differ, in one table.

Only names are here, so that login nodes need no torch. `model/encoders/` builds the encoders.
"""

import re
from typing import Literal, NamedTuple

from furnace_hpc.config.base import ModalityName

RANDOM = "random:"  # before the name of a family: an encoder with random weights
Input = Literal["tokens", "pixels", "patches", "whisper", "clap", "waveform"]
Mask = Literal["keys", "causal", "windows", "tokens", "none"]


class Family(NamedTuple):
    """Encoders of one architecture."""

    label: str
    """Name in messages."""
    modality: ModalityName
    reads: Input
    """Form of the input: the class of model/encoders/ that calls the network."""
    model_types: tuple[str, ...]
    """`model_type` in config.json: of the whole model, then of the encoder alone."""
    network: str
    """Class of transformers."""
    section: str = ""
    """Where config.json of the whole model describes the encoder."""
    scopes: tuple[str, ...] = ()
    """What the names of the encoder's weights may begin with in the files. Weights of heads and of
    other encoders begin otherwise. Without any of them, all weights are the encoder's."""
    unused: tuple[str, ...] = ()
    """Parts that only make a pooled vector, or that only pretraining needs. They are left out."""
    mask: Mask = "keys"
    """Texts: how attention leaves out padding. keys: no token attends to it. causal: nor to later
    tokens. windows: nor, in some layers, to distant ones. tokens: the network makes the mask
    itself. none: texts are padded to full length, and padding is read."""
    interpolates: bool = False
    """Images: whether positions are interpolated to another size if asked to."""
    first_position: int = 0
    """Texts: positions count from the padding's id plus this number. 0: they count from 0."""


FAMILIES: dict[str, Family] = {
    "bert": Family(
        "BERT",
        modality="text",
        reads="tokens",
        unused=("pooler",),
        model_types=("bert",),
        network="BertModel",
        scopes=("bert.",),
    ),
    "roberta": Family(
        "RoBERTa",
        modality="text",
        reads="tokens",
        unused=("pooler",),
        model_types=("roberta",),
        network="RobertaModel",
        scopes=("roberta.",),
        first_position=1,
    ),
    "xlm-roberta": Family(
        "XLM-RoBERTa",
        modality="text",
        reads="tokens",
        unused=("pooler",),
        model_types=("xlm-roberta",),
        network="XLMRobertaModel",
        scopes=("roberta.",),
        first_position=1,
    ),
    "deberta-v2": Family(
        "DeBERTa-v2 or v3",
        modality="text",
        reads="tokens",
        model_types=("deberta-v2",),
        network="DebertaV2Model",
        scopes=("deberta.",),
        mask="tokens",
    ),
    "distilbert": Family(
        "DistilBERT",
        modality="text",
        reads="tokens",
        model_types=("distilbert",),
        network="DistilBertModel",
        scopes=("distilbert.",),
    ),
    "modernbert": Family(
        "ModernBERT",
        modality="text",
        reads="tokens",
        model_types=("modernbert",),
        network="ModernBertModel",
        scopes=("model.",),
        mask="windows",
    ),
    "mpnet": Family(
        "MPNet",
        modality="text",
        reads="tokens",
        unused=("pooler",),
        model_types=("mpnet",),
        network="MPNetModel",
        scopes=("mpnet.",),
        first_position=1,
    ),
    "clip-text": Family(
        "the text encoder of CLIP",
        modality="text",
        reads="tokens",
        model_types=("clip", "clip_text_model"),
        network="CLIPTextModel",
        section="text_config",
        scopes=("text_model.",),
        mask="causal",
    ),
    "siglip-text": Family(
        "the text encoder of SigLIP",
        modality="text",
        reads="tokens",
        model_types=("siglip", "siglip_text_model"),
        network="SiglipTextModel",
        section="text_config",
        scopes=("text_model.",),
        unused=("head",),
        mask="none",
    ),
    "vit": Family(
        "ViT",
        modality="image",
        reads="pixels",
        interpolates=True,
        model_types=("vit",),
        network="ViTModel",
        scopes=("vit.",),
        unused=("pooler", "embeddings.mask_token"),
    ),
    "dinov2": Family(
        "DINOv2",
        modality="image",
        reads="pixels",
        model_types=("dinov2",),
        network="Dinov2Model",
        scopes=("dinov2.",),
        unused=("embeddings.mask_token",),
    ),
    "dinov3": Family(
        "DINOv3",
        modality="image",
        reads="pixels",
        model_types=("dinov3_vit",),
        network="DINOv3ViTModel",
        unused=("embeddings.mask_token",),
    ),
    "clip-vision": Family(
        "the image encoder of CLIP",
        modality="image",
        reads="pixels",
        interpolates=True,
        model_types=("clip", "clip_vision_model"),
        network="CLIPVisionModel",
        section="vision_config",
        scopes=("vision_model.",),
        unused=("post_layernorm",),
    ),
    "siglip-vision": Family(
        "the image encoder of SigLIP",
        modality="image",
        reads="pixels",
        interpolates=True,
        model_types=("siglip", "siglip_vision_model"),
        network="SiglipVisionModel",
        section="vision_config",
        scopes=("vision_model.",),
        unused=("head",),
    ),
    "convnext": Family(
        "ConvNeXt",
        modality="image",
        reads="pixels",
        model_types=("convnext",),
        network="ConvNextModel",
        scopes=("convnext.",),
        unused=("layernorm",),
    ),
    "swin": Family(
        "Swin",
        modality="image",
        reads="pixels",
        interpolates=True,
        model_types=("swin",),
        network="SwinModel",
        scopes=("swin.",),
        unused=("embeddings.mask_token",),
    ),
    "resnet": Family(
        "ResNet",
        modality="image",
        reads="pixels",
        model_types=("resnet",),
        network="ResNetModel",
        scopes=("resnet.",),
    ),
    "ast": Family(
        "the audio spectrogram transformer",
        modality="audio",
        reads="patches",
        model_types=("audio-spectrogram-transformer",),
        network="ASTModel",
        scopes=("audio_spectrogram_transformer.",),
    ),
    "wav2vec2": Family(
        "wav2vec 2.0",
        modality="audio",
        reads="waveform",
        model_types=("wav2vec2",),
        network="Wav2Vec2Model",
        scopes=("wav2vec2.",),
        unused=("masked_spec_embed",),
    ),
    "hubert": Family(
        "HuBERT",
        modality="audio",
        reads="waveform",
        model_types=("hubert",),
        network="HubertModel",
        scopes=("hubert.",),
        unused=("masked_spec_embed",),
    ),
    "wavlm": Family(
        "WavLM",
        modality="audio",
        reads="waveform",
        model_types=("wavlm",),
        network="WavLMModel",
        scopes=("wavlm.",),
        unused=("masked_spec_embed",),
    ),
    "whisper": Family(
        "the encoder of Whisper",
        modality="audio",
        reads="whisper",
        model_types=("whisper",),
        network="WhisperEncoder",
        scopes=("model.encoder.", "encoder."),
    ),
    "clap": Family(
        "the audio encoder of CLAP",
        modality="audio",
        reads="clap",
        model_types=("clap", "clap_audio_model"),
        network="ClapAudioModel",
        section="audio_config",
        scopes=("audio_model.",),
        unused=(
            "audio_encoder.patch_embed.mel_conv2d",
            "audio_encoder.patch_embed.fusion_model",
        ),
    ),
}

# Dropout of features, in the words of all families. They get model.dropout.
DROPOUT = (
    *("hidden_dropout_prob", "hidden_dropout", "dropout", "activation_dropout"),
    *("feat_proj_dropout", "embedding_dropout", "mlp_dropout"),
)
# Settings of config.json that are replaced. Dropout in attention turns off torch's fused
# attention. The others change the network at random in training, so that ranks would differ.
REPLACED: dict[str, object] = {
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "drop_path_rate": 0.0,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "apply_spec_augment": False,
    "pos_embed_shift": None,
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,
    "enable_fusion": False,
    "use_cache": False,
}
# Weights that transformers makes itself, and that files of older versions have.
MADE_AGAIN = ("*position_ids", "*relative_position_index", "*relative_coords_table")


def family_of(modality: str, model_type: object) -> Family | None:
    """Return the family of this modality whose config.json has the `model_type`."""
    for family in FAMILIES.values():
        if family.modality == modality and model_type in family.model_types:
            return family
    return None


def families_of(modality: str) -> list[str]:
    """Return the names of the families of a modality."""
    return [name for name, family in FAMILIES.items() if family.modality == modality]


def is_trained(encoder: str) -> bool:
    """Whether a value of the key `encoder` names files. Others are random, or own code."""
    return not encoder.startswith(RANDOM) and not re.fullmatch(r"[\w.]+:\w+", encoder)
