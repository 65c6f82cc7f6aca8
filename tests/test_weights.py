"""Trained weights from a folder, as transformers saves them, and what is said where they do not fit."""

import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from make import SHAPES, make_inputs, make_model
from transformers import ASTConfig, ASTModel, BertConfig, BertModel, ViTConfig, ViTModel

from furnace_hpc.model.encoders import make_encoder
from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.model_config import ModelConfig

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 32, "patch_size": 8, "num_channels": 1}
AUDIO = {"num_mel_bins": 40, "max_length": 32, "patch_size": 8, "time_stride": 8, "frequency_stride": 8}


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


def test_weights_of_another_width_are_loaded_and_projected(saved):
    model, (inputs, lengths, present) = make_model(**config_of(saved)), make_inputs()
    for name, part in (("text", "bert"), ("image", "vit"), ("audio", "ast")):
        kind = {"text": BertModel, "image": ViTModel, "audio": ASTModel}[name]
        found, wanted = getattr(model.encoders[name], part).state_dict(), kind.from_pretrained(saved[name]).state_dict()
        for key, value in found.items():
            assert torch.equal(value, wanted[key]), (name, key)
        assert model.encoders[name].project.weight.shape == (32, 24)
    with torch.no_grad():
        assert torch.isfinite(model(inputs, lengths, present)["logits"]["digit"]).all()


def test_weights_are_found_by_name_in_the_hubs_cache_without_a_network(saved, tmp_path, monkeypatch):
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
def test_weights_that_are_not_there_are_one_sentence_with_the_mend(weights):
    with pytest.raises(ConfigError) as error:
        make_encoder("text", ModelConfig(text_weights=weights), SHAPES)
    message = str(error.value)
    assert f"model.text_weights '{weights}' is no folder, and not in the hub's cache" in message
    assert f"`hf download {weights}`" in message
    assert "\n" not in message


def test_a_folder_without_a_model_says_so(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no model that can be read"):
        make_encoder("text", ModelConfig(text_weights=str(tmp_path)), SHAPES)


def test_weights_made_for_other_data_are_refused(saved):
    from dataclasses import replace

    config = ModelConfig(**config_of(saved))
    for name, shapes, words in (
        ("text", replace(SHAPES, vocab_size=21), "is made for 20 token ids, and the data set has 21"),
        ("image", replace(SHAPES, image_channels=3), "is made for 1 channels, and the data set has 3"),
        ("audio", replace(SHAPES, audio_frames=33), "is made for 32 frames, and the data set has 33"),
        ("audio", replace(SHAPES, audio_coefficients=41), "is made for 40 bands, and the data set has 41"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            make_encoder(name, config, shapes)


def test_weights_of_another_kind_of_model_are_refused(saved):
    with pytest.raises(ConfigError, match="lacks .* weights of BertModel|no model that can be read"):
        make_encoder("text", ModelConfig(text_weights=saved["image"]), SHAPES)
