"""Folders of small Hugging Face models with random weights, one for each family of encoders."""

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 40
TEXT_TOKENS = 24
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = LAYERS | {"intermediate_size": 24}
POSITIONS = {"vocab_size": VOCABULARY, "max_position_embeddings": 32}
TEXT = SIZES | POSITIONS
PATCHES = SIZES | {"image_size": 32, "patch_size": 8, "num_channels": 1}
MAPS = {
    "num_channels": 1,
    "num_stages": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "drop_path_rate": 0.1,
}
WAVES = SIZES | {
    "conv_dim": [8, 8],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}
CLAP_AUDIO = {
    "hidden_size": 16,
    "patch_embeds_hidden_size": 8,
    "spec_size": 32,
    "num_mel_bins": 16,
    "window_size": 2,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "projection_dim": 16,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 16,
    "max_source_positions": 24,
    "vocab_size": VOCABULARY,
}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

# Family -> (class of the configuration, its values). The family's name is its model_type, with a
# suffix where one model type has several forms.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", TEXT),
    "roberta": ("RobertaConfig", TEXT | SPECIAL),
    "xlm-roberta": ("XLMRobertaConfig", TEXT | SPECIAL),
    "deberta-v2": (
        "DebertaV2Config",
        TEXT
        | {
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "max_relative_positions": -1,
        },
    ),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, **POSITIONS},
    ),
    "modernbert": (
        "ModernBertConfig",
        TEXT
        | SPECIAL
        | {
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 0,
            "sep_token_id": 2,
        },
    ),
    "mpnet": ("MPNetConfig", TEXT | SPECIAL),
    "clip-text": ("CLIPTextConfig", TEXT | SPECIAL),
    "siglip-text": ("SiglipTextConfig", TEXT | SPECIAL | {"projection_size": 16}),
    "vit": ("ViTConfig", PATCHES),
    "dinov2": ("Dinov2Config", PATCHES | {"mlp_ratio": 2}),
    "dinov3": ("DINOv3ViTConfig", PATCHES | {"num_register_tokens": 2}),
    "clip-vision": ("CLIPVisionConfig", PATCHES),
    "siglip-vision": ("SiglipVisionConfig", PATCHES),
    "convnext": ("ConvNextConfig", MAPS),
    "swin": (
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 4,
            "num_channels": 1,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
    ),
    "resnet": (
        "ResNetConfig",
        {
            "num_channels": 1,
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
    ),
    "ast": (
        "ASTConfig",
        SIZES
        | {
            "num_mel_bins": 16,
            "max_length": 48,
            "patch_size": 8,
            "time_stride": 8,
            "frequency_stride": 8,
        },
    ),
    "wav2vec2": ("Wav2Vec2Config", WAVES),
    "wav2vec2-large": (
        "Wav2Vec2Config",
        WAVES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "hubert": ("HubertConfig", WAVES),
    "wavlm": ("WavLMConfig", WAVES | {"num_buckets": 16, "max_bucket_distance": 20}),
    "whisper": ("WhisperConfig", WHISPER | SPECIAL | {"decoder_start_token_id": 0}),
    "clap": ("ClapAudioConfig", CLAP_AUDIO),
}
MODALITIES = {
    "text": tuple(CONFIGS)[:9],
    "image": tuple(CONFIGS)[9:17],
    "audio": tuple(CONFIGS)[17:],
}
# Towers whose class AutoModel does not choose by itself.
TOWERS = {
    "clip-text": "CLIPTextModel",
    "siglip-text": "SiglipTextModel",
    "siglip-vision": "SiglipVisionModel",
    "clip-vision": "CLIPVisionModel",
    "clap": "ClapAudioModel",
}


def make_network(family: str, **changes: Any) -> Any:
    """A model of the family with random weights, as AutoModel makes it from its configuration."""
    import transformers

    kind, values = CONFIGS[family]
    config = getattr(transformers, kind)(**values | changes)
    torch.manual_seed(3)
    if family in TOWERS:
        return getattr(transformers, TOWERS[family])(config).eval()
    return transformers.AutoModel.from_config(config).eval()


def save_network(family: str, folder: Path, **changes: Any) -> Any:
    """Save a model of the family as config.json and model.safetensors. Return the model."""
    network = make_network(family, **changes)
    network.save_pretrained(folder)
    return network


# Name -> (class of a whole model or of one with a head, families of its towers).
WHOLE = {
    "CLIPModel": ("clip-text", "clip-vision"),
    "CLIPVisionModelWithProjection": ("clip-vision",),
    "SiglipModel": ("siglip-text", "siglip-vision"),
    "SiglipForImageClassification": ("siglip-vision",),
    "WhisperForConditionalGeneration": ("whisper",),
    "WhisperForAudioClassification": ("whisper",),
    "ClapModel": ("clap",),
    "ClapAudioModelWithProjection": ("clap",),
    "BertForMaskedLM": ("bert",),
    "BertForSequenceClassification": ("bert",),
    "RobertaForMaskedLM": ("roberta",),
    "XLMRobertaForSequenceClassification": ("xlm-roberta",),
    "DebertaV2ForSequenceClassification": ("deberta-v2",),
    "DistilBertForSequenceClassification": ("distilbert",),
    "ModernBertForMaskedLM": ("modernbert",),
    "MPNetForMaskedLM": ("mpnet",),
    "ViTForImageClassification": ("vit",),
    "Dinov2ForImageClassification": ("dinov2",),
    "ConvNextForImageClassification": ("convnext",),
    "SwinForImageClassification": ("swin",),
    "ResNetForImageClassification": ("resnet",),
    "ASTForAudioClassification": ("ast",),
    "Wav2Vec2ForCTC": ("wav2vec2",),
    "HubertForSequenceClassification": ("hubert",),
    "WavLMForSequenceClassification": ("wavlm",),
}
_SECTIONS = {
    "CLIP": ("CLIPConfig", {"text_config": "clip-text", "vision_config": "clip-vision"}),
    "Siglip": ("SiglipConfig", {"text_config": "siglip-text", "vision_config": "siglip-vision"}),
    "Clap": ("ClapConfig", {"audio_config": "clap"}),
}


def save_whole(kind: str, folder: Path) -> Any:
    """Save a whole model, or one with a head. Return the model."""
    import transformers

    [family, *_] = WHOLE[kind]
    name, values = CONFIGS[family]
    config = getattr(transformers, name)(**values)
    stem = next((stem for stem in _SECTIONS if kind.startswith(stem)), None)
    if stem and not kind.endswith("WithProjection"):
        name, sections = _SECTIONS[stem]
        parts = {key: CONFIGS[part][1] for key, part in sections.items()}
        if stem == "Clap":
            parts["text_config"] = SIZES | {"vocab_size": VOCABULARY}
        config = getattr(transformers, name)(**parts)
    torch.manual_seed(4)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    return model
