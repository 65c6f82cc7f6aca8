"""Trained weights from a folder or the hub's cache, and the errors if they do not fit."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from make import SHAPES, make_inputs, make_model
from tiny_networks import SIZES
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    ASTModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.data.columns import write_columns
from furnace_hpc.data.decode.tokenizer import load_tokenizer, shipped_vocabulary, vocabulary_of
from furnace_hpc.inference.preprocess import make_tokenizer
from furnace_hpc.model.encoders.choice import make_encoder
from furnace_hpc.model.encoders.input_shapes import InputShapes

IMAGE = {"image_size": 32, "patch_size": 8, "num_channels": 1}
AUDIO = {
    "num_mel_bins": 40,
    "max_length": 32,
    "patch_size": 8,
    "time_stride": 8,
    "frequency_stride": 8,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("weights")
    models = {
        "text": BertModel(BertConfig(vocab_size=20, **SIZES)),
        "image": ViTModel(ViTConfig(**IMAGE, **SIZES)),
        "audio": ASTModel(ASTConfig(**AUDIO, **SIZES)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def config_of(saved: dict[str, str]) -> dict[str, str]:
    settings = {f"{name}_weights": folder for name, folder in saved.items()}
    return settings | {"image_encoder": "vit", "audio_encoder": "transformer"}


def test_weights_of_another_width_are_projected(saved):
    model, (inputs, lengths, present) = make_model(**config_of(saved)), make_inputs()
    for name, part in (("text", "bert"), ("image", "vit"), ("audio", "ast")):
        kind = {"text": BertModel, "image": ViTModel, "audio": ASTModel}[name]
        found, wanted = (
            getattr(model.encoders[name], part).state_dict(),
            kind.from_pretrained(saved[name]).state_dict(),
        )
        for key, value in found.items():
            assert torch.equal(value, wanted[key]), (name, key)
        assert model.encoders[name].project.weight.shape == (32, 24)
    with torch.no_grad():
        assert torch.isfinite(model(inputs, lengths, present)["logits"]["digit"]).all()


def test_weights_from_the_hubs_cache(saved, tmp_path, monkeypatch):
    """They are found by name, without a network."""
    commit = "0" * 40
    cached = tmp_path / "models--someone--small-bert"
    shutil.copytree(saved["text"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    bert = make_encoder("text", ModelConfig(text_weights="someone/small-bert"), SHAPES).bert
    for key, value in BertModel.from_pretrained(saved["text"]).state_dict().items():
        if not key.startswith("pooler."):
            assert torch.equal(bert.state_dict()[key], value), key


@pytest.mark.parametrize("weights", ["google-bert/never-fetched", "./no-such-folder"])
def test_missing_weights(weights):
    """The error is one line and names the download command."""
    with pytest.raises(ConfigError) as error:
        make_encoder("text", ModelConfig(text_weights=weights), SHAPES)
    message = str(error.value)
    assert f"model.text_weights '{weights}' is not a folder, and not in the hub's cache" in message
    assert f"`hf download {weights}`" in message
    assert "\n" not in message


def test_folder_without_a_model(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no model that can be read"):
        make_encoder("text", ModelConfig(text_weights=str(tmp_path)), SHAPES)


def test_weights_made_for_other_data_are_refused(saved):
    from dataclasses import replace

    config = ModelConfig(**config_of(saved))
    for name, shapes, words in (
        (
            "text",
            replace(SHAPES, vocab_size=21),
            "takes at most 20 token ids, and the data set has 21",
        ),
        (
            "image",
            replace(SHAPES, image_channels=3),
            "takes exactly 1 channels, and the data set has 3",
        ),
        (
            "audio",
            replace(SHAPES, audio_frames=33),
            "takes at most 32 frames, and the data set has 33",
        ),
        (
            "audio",
            replace(SHAPES, audio_coefficients=41),
            "takes exactly 40 bands, and the data set has 41",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            make_encoder(name, config, shapes)


def test_weights_of_another_model_type_are_refused(saved):
    with pytest.raises(
        ConfigError,
        match="model_type 'vit' is not supported for this key.*model.image_weights",
    ):
        make_encoder("text", ModelConfig(text_weights=saved["image"]), SHAPES)


RELATIVES = {
    "roberta": ("text_weights", RobertaModel, RobertaConfig),
    "distilbert": ("text_weights", DistilBertModel, DistilBertConfig),
    "dinov2": ("image_weights", Dinov2Model, Dinov2Config),
    "wav2vec2": ("audio_weights", Wav2Vec2Model, Wav2Vec2Config),
}


@pytest.mark.parametrize("relative", RELATIVES)
def test_weights_of_relatives_are_refused(tmp_path, relative):
    """Both submit and the run refuse them.

    RoBERTa has all tensors of BERT. Only its model_type differs.
    """
    key, kind, config = RELATIVES[relative]
    known = config().to_dict()
    small = config(
        **{
            n: value
            for n, value in (SIZES | {"num_conv_pos_embedding_groups": 4}).items()
            if n in known
        }
    )
    kind(small).save_pretrained(tmp_path)
    asked = ModelConfig(image_encoder="vit", audio_encoder="transformer", **{key: str(tmp_path)})
    words = f"model.{key} .*: model_type '{relative}' is not supported"
    with pytest.raises(ConfigError, match=words):
        check_pretrained([asked])
    with pytest.raises(ConfigError, match=words):
        make_encoder(key.removesuffix("_weights"), asked, SHAPES)


def changed(saved: str, folder: Path, **changes: object) -> str:
    """Copy the weights with another config.json."""
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, r"lacks 32 weights of BertModel, such as encoder\.layer\.1\."),
        (
            {"num_hidden_layers": 0},
            r"has 16 encoder weights that .* does not describe, such as encoder\.layer\.0",
        ),
        (
            {"hidden_size": 32},
            r"has \d+ weights of another shape .* such as .*: \(.*24.*\), wanted \(.*32.*\)",
        ),
        (
            {"vocab_size": 21},
            r"another shape .* embeddings\.word_embeddings\.weight: \(20, 24\), wanted \(21, 24\)",
        ),
        ({"hidden_size": "wide"}, "has no model that can be read .*hidden_size"),
        ({"num_attention_heads": 7}, "has no model that can be read .*attention heads"),
        ({"hidden_act": "unheard"}, "has no model that can be read .*unheard"),
        ({"num_hidden_layers": None}, "has no model that can be read"),
        ({"model_type": "roberta"}, "model_type 'roberta' is not supported"),
        ({"architectures": ["RobertaModel"]}, "contradict each other"),
    ],
)
def test_tensors_that_do_not_match_their_config(saved, tmp_path, changes, words):
    """The run ends at its start."""
    folder = changed(saved["text"], tmp_path / "weights", **changes)
    with pytest.raises(ConfigError, match=words) as error:
        make_encoder("text", ModelConfig(text_weights=folder), SHAPES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "layers"), [("image", "vit|layers"), ("audio", "audio_spectrogram|layers")]
)
def test_unused_and_missing_layers_are_refused(saved, tmp_path, name, layers):
    asked = {"image_encoder": "vit", "audio_encoder": "transformer"}
    for count, words in (
        (0, f"encoder weights that .* such as .*({layers})"),
        (2, "lacks .* weights of (ViT|AST)Model"),
    ):
        folder = changed(saved[name], tmp_path / str(count), num_hidden_layers=count)
        with pytest.raises(ConfigError, match=words):
            make_encoder(name, ModelConfig(**asked, **{f"{name}_weights": folder}), SHAPES)


def test_heads_of_other_tasks_are_left_out(tmp_path):
    BertForMaskedLM(BertConfig(vocab_size=20, **SIZES)).save_pretrained(tmp_path / "bert")
    ViTForImageClassification(ViTConfig(**IMAGE, **SIZES)).save_pretrained(tmp_path / "vit")
    ASTForAudioClassification(ASTConfig(**AUDIO, **SIZES)).save_pretrained(tmp_path / "ast")
    config = ModelConfig(
        **config_of(
            {
                "text": str(tmp_path / "bert"),
                "image": str(tmp_path / "vit"),
                "audio": str(tmp_path / "ast"),
            }
        )
    )
    check_pretrained([config])
    for name in ("text", "image", "audio"):
        make_encoder(name, config, SHAPES)


def test_cut_weights_end_the_run_at_its_start(saved, tmp_path):
    config = ModelConfig(text_weights=changed(saved["text"], tmp_path / "weights"))
    file = tmp_path / "weights" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(
        ConfigError, match=r"model\.text_weights .* bytes, and its header describes"
    ):
        check_pretrained([config])
    with pytest.raises(
        ConfigError, match=r"model\.text_weights .* has no model that can be read .*SafetensorError"
    ):
        make_encoder("text", config, SHAPES)


def packed_with(folder: Path, words: list[str], tokens: int = 12) -> Path:
    """Pack a set with one text, whose manifest has the fingerprint of the words."""
    vocab = folder / "vocab"
    vocab.mkdir(parents=True)
    (vocab / "vocab.txt").write_text("\n".join(words) + "\n")
    reader = load_tokenizer(str(vocab), tokens)
    ids, length = reader.encode("a b c")
    columns = {
        "text": ids[None],
        "text_length": np.array([length], np.int16),
        "present": np.ones((1, 1), np.uint8),
    }
    write_columns(
        folder / "set",
        splits={"train": columns},
        dataset="words",
        modalities=("text",),
        labels={},
        statistics={},
        vocab_size=reader.vocab_size,
        preprocessing={"text": {"tokenizer": "vocab", "vocabulary": reader.fingerprint}},
    )
    return folder


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno"]


def text_encoder(
    weights: str, data: Path, made: dict[str, dict[str, object]] | None = None
) -> torch.nn.Module:
    shapes = InputShapes.of(read_manifest(data / "set"), made)
    return make_encoder("text", ModelConfig(modalities=("text",), text_weights=weights), shapes)


def test_tokenizer_with_other_words_is_refused(saved, tmp_path):
    """It has the same number of words, so every id fits but means another word.

    BERT-base weights of two languages or two versions are such a case.
    """
    other = WORDS[:5] + WORDS[:4:-1]
    assert len(other) == len(WORDS) == 20
    packed_with(tmp_path / "same", WORDS)
    packed_with(tmp_path / "other", other)
    weights = shutil.copytree(saved["text"], tmp_path / "weights")
    text_encoder(
        str(weights), tmp_path / "other"
    )  # the weights have no tokenizer, so nothing is compared
    BertTokenizer(str(tmp_path / "same" / "vocab" / "vocab.txt")).save_pretrained(weights)
    # not the file that packed the data, but the same words
    assert (weights / "tokenizer.json").is_file()
    text_encoder(str(weights), tmp_path / "same")
    with pytest.raises(ConfigError) as error:
        text_encoder(str(weights), tmp_path / "other")
    message = str(error.value)
    assert message.startswith(f"model.text_weights '{weights}' has a tokenizer with vocabulary ")
    assert f"Pack it with --tokenizer {weights}, or choose other weights" in message
    assert "\n" not in message
    made = {"text": BertConfig(vocab_size=20, **SIZES).to_dict()}
    # an exported model has its own weights
    text_encoder(str(weights), tmp_path / "other", made)


def test_tokenizer_in_the_hubs_cache_is_compared(saved, tmp_path, monkeypatch):
    packed_with(tmp_path / "same", WORDS)
    packed_with(tmp_path / "other", WORDS[:5] + WORDS[:4:-1])
    snapshot = tmp_path / "hub" / "models--some--bert" / "snapshots" / ("0" * 40)
    shutil.copytree(saved["text"], snapshot)
    shutil.copy(tmp_path / "same" / "vocab" / "vocab.txt", snapshot)
    refs = tmp_path / "hub" / "models--some--bert" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert shipped_vocabulary("some/bert") == vocabulary_of(
        read_manifest(tmp_path / "same" / "set")
    )
    assert shipped_vocabulary("some/bert") != vocabulary_of(
        read_manifest(tmp_path / "other" / "set")
    )
    assert shipped_vocabulary("some/never-fetched") is None


def test_tridigits_has_a_vocabulary_fingerprint(small_data):
    words = read_manifest(small_data).preprocessing["vocab"]
    assert (
        vocabulary_of(read_manifest(small_data))
        == make_tokenizer(read_manifest(small_data), None).fingerprint
    )
    assert len(words) == read_manifest(small_data).vocab_size


def test_texts_longer_than_the_positions(tmp_path):
    """Trained weights refuse them. Random weights get more positions."""
    BertModel(BertConfig(vocab_size=20, max_position_embeddings=16, **SIZES)).save_pretrained(
        tmp_path / "short"
    )
    packed_with(tmp_path / "fits", WORDS, tokens=16)
    packed_with(tmp_path / "long", WORDS, tokens=17)
    packed_with(tmp_path / "longest", WORDS, tokens=600)
    text_encoder(str(tmp_path / "short"), tmp_path / "fits")
    with pytest.raises(
        ConfigError,
        match=r"takes at most 16 tokens per text, and the data set has 17\. Choose other weights",
    ):
        text_encoder(str(tmp_path / "short"), tmp_path / "long")
    shapes = InputShapes.of(read_manifest(tmp_path / "longest" / "set"))
    encoder = make_encoder("text", ModelConfig(modalities=("text",), text_layers=1), shapes).eval()
    with torch.no_grad():
        tokens, _ = encoder(torch.ones(1, 600, dtype=torch.int64), torch.tensor([600]))
    assert tokens.shape == (1, 600, 64)
