"""`submit` checks the key `encoder`: the kind of its files, and names of random encoders."""

import json
from pathlib import Path

import pytest
from login_study import pack, refused, write_grid
from pydantic import ValidationError

from furnace_hpc.config.encoder_families import FAMILIES
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.config.sections.model import ModelConfig


def small_weights(folder: Path, **config: object) -> Path:
    """A folder with one tensor of four bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    size = len(header).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(size + header + bytes(4))
    return folder


def model(modality: str, encoder: object, **more: object) -> ModelConfig:
    return ModelConfig(**{modality: {"encoder": str(encoder)}}, **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_model_types_of_each_family(name, tmp_path):
    """They are accepted for the family's modality, and refused for others with the right key."""
    family = FAMILIES[name]
    for model_type in family.model_types:
        folder = small_weights(tmp_path / model_type, model_type=model_type)
        check_pretrained([model(family.modality, folder)])
        of_type = {f.modality for f in FAMILIES.values() if model_type in f.model_types}
        for other in {"text", "image", "audio"} - of_type:
            with pytest.raises(ConfigError) as error:
                check_pretrained([model(other, folder)])
            assert str(error.value).startswith(f"model.{other}.encoder {str(folder)!r}: model_type")
            assert f"which does not encode {other}. Use it for model." in str(error.value)
            assert f"model.{family.modality}.encoder" in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "config.json has no model_type. Choose weights of one of these: bert, clip, "),
        ({"model_type": "llama"}, "model_type 'llama' is not a supported text encoder. Choose "),
        ({"model_type": ["bert"]}, r"model_type \['bert'\] is not a supported text encoder"),
        (
            {"model_type": "bert", "architectures": ["RobertaModel"]},
            "model_type 'bert' and architectures 'RobertaModel' of config.json contradict",
        ),
        ({"model_type": "bert", "architectures": "BertModel"}, "wanted a list of text"),
    ],
)
def test_wrong_descriptions(config, words, tmp_path):
    folder = small_weights(tmp_path / "weights", **config)
    for may_lack in (False, True):
        with pytest.raises(ConfigError, match=words) as error:
            check_pretrained([model("text", folder)], may_lack)
        assert "\n" not in str(error.value)


def test_classes_with_a_head(tmp_path):
    for model_type, kind in (
        ("clip", "CLIPModel"),
        ("clip_text_model", "CLIPTextModelWithProjection"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("deberta-v2", "DebertaV2Model"),
    ):
        folder = small_weights(tmp_path / kind, model_type=model_type, architectures=[kind])
        check_pretrained([model("text", folder)])


def test_pickles_are_refused(tmp_path):
    folder = small_weights(tmp_path / "weights", model_type="hubert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.audio\.encoder .* has no model"):
        check_pretrained([model("audio", folder)])


def test_submit_refuses_another_modality(tmp_path):
    """It imports no torch for this."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    small_weights(tmp_path / "whisper", model_type="whisper")
    [line] = refused(tmp_path, "study.yaml", "--set", "model.text.encoder=whisper")
    assert line == (
        "model.text.encoder 'whisper': model_type 'whisper' is the encoder of Whisper, which does "
        "not encode text. Use it for model.audio.encoder, or choose other weights"
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"text": {"encoder": "random:roberto"}}, "text.encoder is random:roberto.*roberta"),
        ({"text": {"encoder": "random:vit"}}, "text.encoder is random:vit"),
        (
            {"text": {"encoder": "a"}, "text_weights": "b"},
            "text.encoder and text_weights both choose the encoder. Remove one of them",
        ),
        (
            {"image": {"encoder": "a"}, "image_encoder": "vit"},
            "image.encoder and image_encoder both choose the encoder",
        ),
        ({"audio": {"encoder": ""}}, "at least 1 character"),
    ],
)
def test_wrong_keys(config, words):
    with pytest.raises(ValidationError, match=words):
        ModelConfig(**config)
