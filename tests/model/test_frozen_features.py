"""Features of one sample of each family: the bits that do not depend on a batch, and their size."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from encoder_folders import MODALITIES, save_network
from encoder_samples import SHAPES, config_of, modality_of, sample_of, shapes_of

from furnace_hpc.config.preprocessing.feature_size import feature_size
from furnace_hpc.model.encoders.choice import make_encoder
from furnace_hpc.model.fine_tuning import fine_tune
from furnace_hpc.model.frozen_features import FrozenEncoder, encoded, mask_key, projection_of

ALL = [family for families in MODALITIES.values() for family in families]


def frozen(family: str, folder: Path, width: int = 16):
    """An encoder of files, frozen. Return it, its config and its frozen copy."""
    modality = modality_of(family)
    save_network(family, folder)
    config = config_of(modality, folder)
    section = getattr(config, modality).model_copy(update={"freeze": "all"})
    config = config.model_copy(update={modality: section, "width": width})
    torch.manual_seed(0)
    encoder = make_encoder(modality, config, shapes_of(family))
    fine_tune({modality: encoder}, config)
    return encoder, config, FrozenEncoder(modality, encoder, torch.device("cpu"), torch.float32)


def alone(family: str, number: int):
    """The batch of one sample without padding, as the reader makes it: texts in eights."""
    values, lengths = sample_of(family)
    modality = modality_of(family)
    if lengths is None:
        return {modality: values[number : number + 1].clone()}, {}
    longest = int(lengths[number])
    if modality == "text":
        longest = min(values.shape[1], -(-longest // 8) * 8)
    given = {modality: lengths[number : number + 1]}
    return {modality: values[number : number + 1, ..., :longest].clone()}, given


@pytest.mark.parametrize("family", ALL)
def test_features_of_every_family(family: str, tmp_path: Path):
    """They are the encoder's tokens, have the size that submit shows, and repeat bit by bit."""
    encoder, config, copy = frozen(family, tmp_path, width=8)
    modality = modality_of(family)
    values, lengths = sample_of(family)
    encoder.eval()
    with torch.no_grad():
        given = {} if lengths is None else {modality: lengths}
        everyone = torch.ones(len(values), dtype=torch.bool)
        tokens, masks = encoded(encoder, modality, {modality: values}, given, everyone)
        for number in range(len(values)):
            inputs, length = alone(family, number)
            features, mask = copy.features(inputs, length)
            again, _ = copy.features(*alone(family, number))
            assert torch.equal(features, again)
            batch = {modality: features.unsqueeze(0)}, {mask_key(modality): mask.unsqueeze(0)}
            found, found_mask = encoded(encoder, modality, *batch, everyone[:1])
            valid = masks[number]
            assert found_mask[0].sum() == valid.sum()
            difference = (found[0][found_mask[0]] - tokens[number][valid]).abs().max()
            assert difference <= 1e-5
    size = feature_size(modality, config, manifest_of(family))
    assert size == features_of_longest(family, copy)


def features_of_longest(family: str, copy: FrozenEncoder) -> tuple[int, int]:
    modality, shapes = modality_of(family), shapes_of(family)
    longest = {"text": (SHAPES.text_tokens,), "image": (1, 32, 32), "audio": audio_shape(family)}
    values = torch.randn(1, *longest[modality])
    if modality == "text":
        values = torch.full((1, shapes.text_tokens), 5)
    lengths = {}
    if modality == "text" or not shapes.audio_coefficients:
        lengths = {modality: torch.tensor([values.shape[-1]])}
    features, _ = copy.features({modality: values}, lengths)
    return tuple(features.shape)


def audio_shape(family: str) -> tuple[int, ...]:
    shapes = shapes_of(family)
    if not shapes.audio_coefficients:
        return (shapes.audio_frames,)
    return shapes.audio_coefficients, shapes.audio_frames


def manifest_of(family: str):
    """What the size depends on, in the form of a manifest."""
    columns = {"text": (SHAPES.text_tokens,), "image": (1, 32, 32), "audio": audio_shape(family)}
    return SimpleNamespace(
        columns={name: SimpleNamespace(shape=shape) for name, shape in columns.items()}
    )


def test_only_the_projection_is_left_out(tmp_path: Path):
    encoder, _, copy = frozen("bert", tmp_path, width=8)
    assert projection_of(encoder) is encoder.project
    assert projection_of(copy.module) is copy.module.project
    assert isinstance(copy.module.project, torch.nn.Identity)
    names = {name for name, _ in copy.module.named_parameters()}
    assert names == {n for n, _ in encoder.named_parameters() if not n.startswith("project")}


def test_a_size_that_files_do_not_say_is_not_known(tmp_path: Path):
    save_network("bert", tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["hidden_size"]
    path.write_text(json.dumps(content))
    config = config_of("text", tmp_path)
    assert feature_size("text", config, manifest_of("bert")) is None
