"""`submit` checks the files and the kind of pretrained weights before anything starts."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from login_study import command, pack, refused, write_grid

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.config.sections.model import ModelConfig


@pytest.fixture
def place(tmp_path):
    """A working directory with a grid and its packed data."""
    write_grid(tmp_path)
    pack(tmp_path / "data" / "tridigits")
    return tmp_path


def only(place: Path, *arguments: str) -> str:
    [line] = refused(place, "study.yaml", *arguments)
    return line


def small_weights(folder: Path, config: object, key: str = "text_weights") -> Path:
    """A folder with one tensor of four bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(config, str):
        config = json.dumps(config)
    (folder / "config.json").write_text(config)
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4)
    )
    return folder


def model(key: str, folder: object) -> ModelConfig:
    return ModelConfig(image_encoder="vit", audio_encoder="transformer", **{key: str(folder)})


@pytest.mark.parametrize(
    "files", [(), ("config.json",), ("config.json", "pytorch_model.bin"), ("model.safetensors",)]
)
def test_missing_files_and_pickles_are_refused(place, files):
    (place / "bert").mkdir()
    for file in files:
        (place / "bert" / file).write_text("{}")
    assert only(place, "--set", "model.text_weights=bert", "--cluster", "local") == (
        "model.text_weights 'bert' has no model that can be read. Runs download nothing. Fetch it "
        "on a machine with a network (`hf download bert`), or give the path of a folder with "
        "config.json and model.safetensors"
    )


def test_unknown_weights_are_refused(place):
    """They are neither a folder nor in the hub's cache."""
    for name in ("./bert", "someone/never-fetched"):
        message = only(place, "--set", f"model.text_weights={name}")
        problem = f"model.text_weights '{name}' is not a folder, and not in the hub's cache. "
        assert message.startswith(problem)


SUPPORTED = {
    "text_weights": ("bert", ["BertForMaskedLM"]),
    "image_weights": ("vit", ["ViTModel"]),
    "audio_weights": ("audio-spectrogram-transformer", ["ASTForAudioClassification"]),
}
ENCODERS = ("--set", "model.image_encoder=vit", "--set", "model.audio_encoder=transformer")
OTHERS = (
    "roberta distilbert xlm-roberta camembert electra dinov2 dinov2_with_registers deit vit_mae "
    "vit_msn swin clip siglip wav2vec2 hubert whisper modernbert deberta-v2 BERT visual_bert"
)
OTHERS = [*OTHERS.split(), "bert ", ""]


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("key", SUPPORTED)
def test_weights_of_another_model_are_refused_by_name(place, key, kind):
    folder, (wanted, _) = small_weights(place / "weights", {"model_type": kind}), SUPPORTED[key]
    with pytest.raises(ConfigError) as error:
        check_pretrained([model(key, folder)])
    assert str(error.value).startswith(
        f"model.{key} '{folder}': model_type {kind!r} is not supported for this key. "
    )
    assert f"model_type {wanted!r} (" in str(error.value)
    assert "\n" not in str(error.value)
    # also if a job may find another cache
    with pytest.raises(ConfigError, match=f"model_type {kind!r} is not supported"):
        check_pretrained([model(key, folder)], may_lack=True)


@pytest.mark.parametrize("key", SUPPORTED)
def test_weights_of_another_modality_are_refused(place, key):
    """The error names the key that they are for."""
    for other, (kind, _) in SUPPORTED.items():
        folder = small_weights(place / other, {"model_type": kind})
        if other == key:
            check_pretrained([model(key, folder)])
        else:
            with pytest.raises(ConfigError, match=f"or use these for model.{other}"):
                check_pretrained([model(key, folder)])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "config.json is not JSON"),
        ("{", "config.json is not JSON"),
        ("[" * 100_000, "config.json is not JSON"),
        ("[]", r"config.json is \[\], wanted a JSON object"),
        ("3", "config.json is 3, wanted a JSON object"),
        ("null", "config.json is None, wanted a JSON object"),
        ("{}", 'has no model_type. If it is a BERT, add "model_type": "bert"'),
        ({"model_type": None}, "has no model_type"),
        ({"model_type": ["bert"]}, r"model_type \['bert'\] is not supported"),
        (
            {"model_type": {"a": "b" * 500}},
            r"model_type \{'a': 'b{20,60}\.\.\. is not supported",
        ),
        (
            {"model_type": "bert", "architectures": ["RobertaForMaskedLM"]},
            "architectures 'RobertaForMaskedLM' of config.json contradict each other",
        ),
        (
            {"model_type": "bert", "architectures": ["BertModel", "DistilBertModel"]},
            "'DistilBertModel' of config.json contradict each other",
        ),
        (
            {"model_type": "bert", "architectures": ["CamembertForMaskedLM"]},
            "contradict each other",
        ),
        ({"model_type": "bert", "architectures": ["TFRobertaModel"]}, "contradict each other"),
        (
            {"model_type": "bert", "architectures": "BertModel"},
            "architectures in config.json is 'BertModel', wanted a list",
        ),
        (
            {"model_type": "bert", "architectures": [3]},
            r"architectures in config.json is \[3\], wanted a list",
        ),
    ],
)
def test_a_broken_config_is_refused(place, config, words):
    folder = small_weights(place / "bert", config)
    with pytest.raises(ConfigError, match=words) as error:
        check_pretrained([model("text_weights", folder)])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        ["BertModel"],
        ["BertForPreTraining", "BertModel"],
        ["BertLMHeadModel"],
        ["BertPreTrainedModel"],
        ["TFBertModel"],
        ["FlaxBertForMaskedLM"],
        ["HF_ColBERT"],
    ],
)
def test_usual_architectures_are_accepted(place, names):
    folder = small_weights(place / "bert", {"model_type": "bert", "architectures": names})
    check_pretrained([model("text_weights", folder)])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a safetensors file, or is cut off"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of git-lfs",
        ),
        (b"<html>not found</html>", "is not a safetensors file"),
        (b"\xff" * 100, "is not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "has a header that cannot be read"),
        ((8).to_bytes(8, "little") + b'{"a": 3}', "has a header that cannot be read"),
        ((50_000).to_bytes(8, "little") + b"[" * 50_000, "has a header that cannot be read"),
        ((2).to_bytes(8, "little") + b"{}more", "has 14 bytes, and its header describes 10"),
    ],
)
def test_damaged_weights_are_refused(place, content, words):
    folder = small_weights(place / "bert", {"model_type": "bert"})
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=f"model.safetensors {words}"):
        check_pretrained([model("text_weights", folder)])


def test_cut_weights_are_refused_with_both_sizes(place):
    folder = small_weights(place / "bert", {"model_type": "bert"})
    whole = (folder / "model.safetensors").read_bytes()
    for length in range(len(whole)):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(
            ConfigError, match=r"model\.safetensors (is not a safetensors file|has )"
        ):
            check_pretrained([model("text_weights", folder)])


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{}", "has no weight_map"),
        ("[]", "has no weight_map"),
        ("{", "is not JSON"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
        (
            '{"weight_map": {"a": "model-2.safetensors"}}',
            "lists 'model-2.safetensors', which is missing",
        ),
        (
            '{"weight_map": {"a": "broken.safetensors"}}',
            "broken.safetensors is not a safetensors file",
        ),
    ],
)
def test_weights_in_parts_are_checked(place, index, words):
    folder = small_weights(place / "bert", {"model_type": "bert"})
    (folder / "model.safetensors").unlink()
    (folder / "broken.safetensors").write_bytes(b"x")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=words):
        check_pretrained([model("text_weights", folder)])


def test_the_hubs_cache_is_checked(place, monkeypatch):
    commit = "0" * 40
    small_weights(
        place / "hub" / "models--FacebookAI--roberta-base" / "snapshots" / commit,
        {"model_type": "roberta"},
    )
    (place / "hub" / "models--FacebookAI--roberta-base" / "refs").mkdir()
    (place / "hub" / "models--FacebookAI--roberta-base" / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    asked = ("--set", "model.text_weights=FacebookAI/roberta-base")
    message = only(place, *asked, "--cluster", "local")
    assert message.startswith(
        "model.text_weights 'FacebookAI/roberta-base': model_type 'roberta' is not supported"
    )


def test_submit_reports_all_weights_at_once(place):
    folders = {
        "text_weights": small_weights(place / "roberta", {"model_type": "roberta"}),
        "image_weights": small_weights(place / "dino", {"model_type": "dinov2"}),
        "audio_weights": small_weights(place / "wave", {"model_type": "wav2vec2"}),
    }
    asked = [word for key, folder in folders.items() for word in ("--set", f"model.{key}={folder}")]
    lines = refused(place, "study.yaml", *ENCODERS, *asked, "--cluster", "local")
    assert [line.split("'")[3] for line in lines] == ["wav2vec2", "dinov2", "roberta"]
    assert not (place / "runs").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=5,
)
FACTS = st.dictionaries(
    st.sampled_from(["model_type", "architectures", "weight_map", "data_offsets", "a"]),
    JSON | st.just("bert"),
)
FILES = (
    st.binary(max_size=40)
    | JSON.map(lambda x: json.dumps(x).encode())
    | FACTS.map(lambda x: json.dumps(x).encode())
)


@pytest.mark.fuzz
@settings(max_examples=settings().max_examples)
@given(config=FILES, weights=FILES, index=st.booleans(), framed=st.booleans())
def test_any_files_are_accepted_or_one_error(tmp_path_factory, config, weights, index, framed):
    folder = tmp_path_factory.mktemp("weights")
    (folder / "config.json").write_bytes(config)
    if framed:
        weights = len(weights).to_bytes(8, "little") + weights
    name = "model.safetensors"
    if index:
        name += ".index.json"
    (folder / name).write_bytes(weights)
    said = ""
    try:
        check_pretrained([model("text_weights", folder)])
    except ConfigError as error:
        said = str(error)
    finally:
        shutil.rmtree(folder)
    assert "\n" not in said
    if not said:
        assert json.loads(config)["model_type"] == "bert"


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json"])
def test_complete_weights_are_planned(place, weights):
    folder = small_weights(place / "bert", {"model_type": "bert"})
    if weights != "model.safetensors":
        (folder / "model.safetensors").rename(folder / "part-1.safetensors")
        (folder / weights).write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    words = f"--grid study.yaml --dry-run --cluster local --set model.text_weights={folder}".split()
    assert "4 runs (4 start) on local" in command("submit", place, *words).stdout
