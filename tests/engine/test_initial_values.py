"""What a network takes from the weights of another one, and what their rows must stand for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from make import make_config, make_model
from safetensors.torch import save_file

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels, Manifest, read_manifest
from furnace_hpc.config.sections.initial_weights import InitialWeights
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.weights.initial import set_initial_weights
from furnace_hpc.model.network import FusionModel
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.checkpoint_files import describe

VIT = {"image_encoder": "vit", "image_layers": 1}
ADAPTED: dict[str, Any] = {"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}


@pytest.fixture(scope="module")
def manifest(small_data: Path) -> Manifest:
    return read_manifest(small_data)


def saved(folder: Path, model: FusionModel, manifest: Manifest) -> Path:
    """The files of an exported model that init_from reads."""
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    files = {"model.safetensors": describe(folder / "model.safetensors")}
    content = {"data": manifest.model_dump(mode="json"), "files": files}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def set_from(folder: Path, model: FusionModel, manifest: Manifest, *parts: str) -> None:
    source = InitialWeights(model=str(folder), parts=parts)
    config = make_config().model_copy(update={"init_from": (source,)})
    processes = Processes(0, 0, 1, torch.device("cpu"))
    run = RunFolder(folder / "run")
    set_initial_weights(model, config, manifest, run, processes, lambda what: None)


def image_tokens(model: FusionModel) -> torch.Tensor:
    pixels = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval().encoders["image"](pixels, None)[0]


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_begin_on_a_whole_encoder(manifest: Manifest, tmp_path: Path, dora: bool):
    """The network with adapters first computes what the source computes."""
    source = make_model(**VIT)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.5).add_(0.01)
    adapted = {"lora": ADAPTED["lora"] | {"dora": dora}}
    model = make_model(**VIT, image=adapted)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_from(saved(tmp_path / "whole", source, manifest), model, manifest, "encoders.image")
    difference = (image_tokens(model) - image_tokens(source)).abs().max().item()
    assert difference <= (1e-6 if dora else 0.0)
    after = model.state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in after if ".lora_A." in name or ".lora_B." in name} <= kept
    assert not {name for name in kept if name.startswith("encoders.image") and "base" in name}


def test_adapters_are_taken_with_their_encoder(manifest: Manifest, tmp_path: Path):
    source = make_model(**VIT, image=ADAPTED)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    model = make_model(**VIT, image=ADAPTED)
    set_from(saved(tmp_path / "adapted", source, manifest), model, manifest)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_whole_encoders_do_not_take_adapters(manifest: Manifest, tmp_path: Path):
    folder = saved(tmp_path / "adapted", make_model(**VIT, image=ADAPTED), manifest)
    with pytest.raises(ConfigError, match="is 32 there and missing here"):
        set_from(folder, make_model(**VIT), manifest, "encoders.image")


def changed(manifest: Manifest, words: bool = False, classes: bool = False) -> Manifest:
    """The manifest of another pack with the same sizes."""
    settings, labels = dict(manifest.preprocessing), dict(manifest.labels)
    if words:
        first, second, *others = settings["vocab"]
        settings["vocab"] = [first, others[0], second, *others[1:]]
    if classes:
        ordered = tuple(reversed(labels["digit"].classes))
        labels["digit"] = Labels(kind="single_label", classes=ordered)
    return manifest.model_copy(update={"preprocessing": settings, "labels": labels})


@pytest.mark.parametrize(
    ("change", "parts", "message"),
    [
        ({"words": True}, ("encoders.text",), "has a row per token, and the token ids there are"),
        ({"classes": True}, ("heads",), "number 0 is '9' there and '0' here"),
        ({"classes": True}, ("unimodal",), "unimodal.digit.0.bias is copied, and the classes"),
        ({"words": True, "classes": True}, ("encoders.image", "norms"), ""),
        ({"classes": True}, ("encoders.text",), ""),
    ],
)
def test_rows_must_stand_for_the_same(manifest, tmp_path, change, parts, message: str):
    folder = saved(tmp_path / "model", make_model(), changed(manifest, **change))
    if not message:
        set_from(folder, make_model(), manifest, *parts)
        return
    with pytest.raises(ConfigError, match=message):
        set_from(folder, make_model(), manifest, *parts)
