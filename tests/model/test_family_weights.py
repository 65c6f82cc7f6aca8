"""Weights of Hugging Face encoders: whole models, shards, old names, and all that is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_folders import WHOLE, save_network, save_whole
from encoder_samples import SHAPES, config_of, modality_of, shapes_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.data.columns import write_columns
from furnace_hpc.model.encoders.choice import make_encoder
from furnace_hpc.model.encoders.input_shapes import InputShapes

WEIGHTS = "model.safetensors"


def made(family: str, folder: Path, **changes: Any) -> Any:
    """Check the folder as `submit` does, and make the encoder."""
    modality = modality_of(family)
    config = config_of(modality, folder, **changes)
    check_pretrained([config])
    return make_encoder(modality, config, shapes_of(family))


def rewrite(folder: Path, change: Any) -> None:
    """Save the weights again, after a change of the dictionary."""
    weights = load_file(folder / WEIGHTS)
    weights = change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def check_equal(network: nn.Module, files: dict[str, Tensor]) -> None:
    """All weights of the network are among those of the files, by value."""
    known = {value.numpy().tobytes() for value in files.values()}
    for name, value in network.state_dict().items():
        assert value.numpy().tobytes() in known, name


def test_left_out_weights_are_listed(tmp_path):
    save_whole("CLIPModel", tmp_path)
    listed = "logit_scale (1), text_projection (1), vision_model (39), visual_projection (1)"
    assert made("clip-text", tmp_path).left_out == listed
    save_whole("BertForMaskedLM", tmp_path / "bert")
    assert made("bert", tmp_path / "bert").left_out == "cls (5)"


@pytest.mark.parametrize("kind", WHOLE)
def test_towers_of_whole_models(kind, tmp_path):
    """Heads and other towers are left out. A missing pooler is no error."""
    save_whole(kind, tmp_path)
    files = load_file(tmp_path / WEIGHTS)
    for family in WHOLE[kind]:
        check_equal(made(family, tmp_path).network, files)


def test_shards(tmp_path):
    save_network("bert", tmp_path / "whole").save_pretrained(
        tmp_path / "shards", max_shard_size="8KB"
    )
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    check_equal(made("bert", tmp_path / "shards").network, load_file(tmp_path / "whole" / WEIGHTS))
    next(iter((tmp_path / "shards").glob("model-*.safetensors"))).unlink()
    with pytest.raises(ConfigError, match=r"model\.text\.encoder .* lists .*, which is missing"):
        made("bert", tmp_path / "shards")


OLD_NAMES = {
    "bert": [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")],
    "wav2vec2": [
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ],
    "clip-text": [("^", "text_model.")],
    "clip-vision": [("^", "vision_model.")],
}


@pytest.mark.parametrize("family", OLD_NAMES)
def test_names_of_older_versions(family, tmp_path):
    """Buffers that transformers makes itself are no error."""
    save_network(family, tmp_path)
    files = load_file(tmp_path / WEIGHTS)

    def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for name, value in weights.items():
            for new, old in OLD_NAMES[family]:
                name = re.sub(new, old, name) if new == "^" else name.replace(new, old)
            renamed[name] = value
        prefix = "text_model." if family == "clip-text" else ""
        return renamed | {f"{prefix}embeddings.position_ids": torch.arange(3)}

    rewrite(tmp_path, rename)
    if family in ("clip-vision", "wav2vec2"):
        rewrite(tmp_path, lambda w: {k: v for k, v in w.items() if "position_ids" not in k})
    assert load_file(tmp_path / WEIGHTS).keys() != files.keys()
    check_equal(made(family, tmp_path).network, files)


def without(pattern: str) -> Any:
    return lambda weights: {k: v for k, v in weights.items() if not re.search(pattern, k)}


MISSING = {
    "bert": r"encoder\.layer\.1\.attention",
    "whisper": r"^encoder\.layers\.1\.fc1",
    "resnet": "running_mean",
    "clap": "relative_position_bias_table",
    "clip-vision": "pre_layrnorm",
    "wav2vec2": "feature_projection",
}


@pytest.mark.parametrize("family", MISSING)
def test_missing_weights(family, tmp_path):
    """They are an error unless the config names them."""
    save_network(family, tmp_path)
    rewrite(tmp_path, without(MISSING[family]))
    with pytest.raises(ConfigError, match=r"encoder .* lacks \d+ weights of .* allow_missing"):
        made(family, tmp_path)
    name = re.sub(r"[\\^]", "", MISSING[family]).removeprefix("encoder." * (family == "whisper"))
    with pytest.raises(ConfigError, match=r"lacks \d+ weights"):
        made(family, tmp_path, allow_missing=["other.*"])
    made(family, tmp_path, allow_missing=[f"*{name}*"])


UNKNOWN = {
    "bert": "encoder.layer.2.output.dense.weight",
    "clip-text": "encoder.layers.2.mlp.fc1.weight",
    "convnext": "encoder.stages.2.layers.0.pwconv1.weight",
    "dinov3": "layer.2.mlp.up_proj.weight",
    "wav2vec2": "adapter.layers.0.conv.weight",
    "whisper": "encoder.layers.2.fc1.weight",
}


@pytest.mark.parametrize("family", UNKNOWN)
def test_weights_without_a_layer(family, tmp_path):
    """Weights of the encoder that would not be used are an error unless the config names them."""
    save_network(family, tmp_path)
    rewrite(tmp_path, lambda weights: weights | {UNKNOWN[family]: torch.ones(3)})
    with pytest.raises(ConfigError, match=r"has 1 encoder weights that .* does not describe"):
        made(family, tmp_path)
    made(family, tmp_path, allow_unused=["*.2.*", "adapter.*"])


def test_unknown_weights_of_a_whole_model(tmp_path):
    """The prefix tells those of the encoder from those of the decoder."""
    save_whole("WhisperForConditionalGeneration", tmp_path)
    extra = {"model.encoder.layers.7.fc1.bias": torch.ones(3), "model.decoder.x": torch.ones(3)}
    rewrite(tmp_path, lambda weights: weights | extra)
    with pytest.raises(ConfigError, match=r"has 1 encoder weights .* layers\.7\.fc1\.bias"):
        made("whisper", tmp_path)


def test_weights_of_another_shape(tmp_path):
    save_network("roberta", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 41}))
    words = r"1 weights of another shape .*: \(40, 16\), wanted \(41, 16\)\. .*allow_missing"
    with pytest.raises(ConfigError, match=words):
        made("roberta", tmp_path)
    made("roberta", tmp_path, allow_missing=["embeddings.word_embeddings.weight"])


def test_allowed_weights_start_from_the_seed(tmp_path):
    save_network("bert", tmp_path)
    rewrite(tmp_path, without(r"layer\.1\.intermediate"))
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network = made("bert", tmp_path, allow_missing=["encoder.layer.1.intermediate.*"]).network
        weights.append(network.encoder.layer[1].intermediate.dense.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_code_of_a_folder_never_runs(tmp_path):
    save_network("bert", tmp_path)
    file, canary = tmp_path / "config.json", tmp_path / "canary"
    content = json.loads(file.read_text())
    classes = {"AutoConfig": "mine.BertConfig", "AutoModel": "mine.BertModel"}
    file.write_text(json.dumps(content | {"auto_map": classes}))
    (tmp_path / "mine.py").write_text(f"open({str(canary)!r}, 'w')\n")
    made("bert", tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("roberta", {"text_tokens": 31}, "at most 30 tokens per text, and the data set has 31"),
        ("mpnet", {"text_tokens": 31}, "at most 30 tokens per text, and the data set has 31"),
        ("bert", {"text_tokens": 33}, "at most 32 tokens per text, and the data set has 33"),
        ("bert", {"vocab_size": 41}, "at most 40 token ids, and the data set has 41"),
        ("roberta", {"pad_id": 0}, "counts positions from its padding, id 1, .* with id 0"),
        ("convnext", {"image_channels": 3}, "exactly 1 channels, and the data set has 3"),
        ("ast", {"audio_frames": 47}, "exactly 48 frames, and the data set has 47"),
        ("ast", {"audio_coefficients": 17}, "exactly 16 bands, and the data set has 17"),
        ("whisper", {"audio_frames": 49}, "at most 48 frames, and the data set has 49"),
        ("clap", {"audio_frames": 65}, "at most 64 frames, and the data set has 65"),
        ("hubert", {"audio_coefficients": 16}, "takes waveforms, .* features of 16 bands"),
        ("wavlm", {"audio_coefficients": 0, "audio_frames": 44}, "waveforms of at least 45"),
    ],
)
def test_data_that_does_not_fit(family, changes, words, tmp_path):
    save_network(family, tmp_path)
    modality = modality_of(family)
    with pytest.raises(ConfigError, match=rf"model\.{modality}\.encoder .*{words}") as error:
        make_encoder(modality, config_of(modality, tmp_path), replace(SHAPES, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "heads", "words"),
    [
        ("dinov3", 8, "is 2, and random:dinov3 needs a multiple of 4. Change one"),
        ("modernbert", 16, "is 1, and random:modernbert needs a multiple of 2. Change one"),
        ("swin", 16, "16 is not a multiple of twice model.num_heads 16, which random:swin needs"),
    ],
)
def test_sizes_of_random_encoders(family, heads, words):
    modality = modality_of(family)
    config = config_of(modality, f"random:{family}").model_copy(update={"num_heads": heads})
    with pytest.raises(ConfigError, match=words):
        make_encoder(modality, config, shapes_of(family))


def test_longer_texts_than_positions(tmp_path):
    """DeBERTa-v3 has no positions, so texts may have any length."""
    save_network("deberta-v2", tmp_path)
    config = config_of("text", tmp_path)
    make_encoder("text", config, replace(SHAPES, text_tokens=500))


def test_images_of_another_size(tmp_path):
    """Positions are interpolated, as transformers does."""
    for family in ("vit", "clip-vision", "siglip-vision", "swin", "dinov2"):
        network = save_network(family, tmp_path / family)
        shapes = replace(SHAPES, image_size=(48, 40))
        encoder = make_encoder("image", config_of("image", tmp_path / family), shapes).eval()
        pixels = torch.randn(2, 1, 48, 40)
        options = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
        with torch.no_grad():
            found, _ = encoder(pixels, None)
            wanted = network(pixel_values=pixels, **options).last_hidden_state
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_waveform_columns(tmp_path):
    """A column of samples has no bands. Its size is in samples."""
    columns = {
        "audio": np.zeros((2, 500), np.int16),
        "audio_length": np.full(2, 500, np.int32),
        "present": np.ones((2, 1), np.uint8),
    }
    write_columns(
        tmp_path / "set",
        splits={"train": columns},
        dataset="sounds",
        modalities=("audio",),
        labels={},
        statistics={},
        vocab_size=None,
        preprocessing={},
    )
    shapes = InputShapes.of(read_manifest(tmp_path / "set"))
    assert (shapes.audio_coefficients, shapes.audio_frames) == (0, 500)


def test_fused_clap(tmp_path):
    """Short sounds need no fusion. Its weights are left out."""
    import transformers
    from encoder_folders import CLAP_AUDIO

    torch.manual_seed(2)
    values = CLAP_AUDIO | {"enable_fusion": True, "fusion_type": "aff_2d", "aff_block_r": 2}
    network = transformers.ClapAudioModel(transformers.ClapAudioConfig(**values)).eval()
    network.save_pretrained(tmp_path)
    features = torch.randn(2, 16, 60)
    encoder = made("clap", tmp_path).eval()
    four = features.transpose(1, 2).unsqueeze(1).expand(-1, 4, -1, -1)
    with torch.no_grad():
        found, _ = encoder(features, None)
        short = torch.zeros(2, 1, dtype=torch.bool)
        wanted = network(input_features=four, is_longer=short).last_hidden_state
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
