"""Text pairs in a network of own code: its text encoder gets token types, as the built-in one."""

import shutil
from pathlib import Path

import torch
from make import SHAPES
from own_code_study import NETWORK, PACKAGE, SMALL, write_package

from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.config.own_code.loading import use_folder
from furnace_hpc.config.own_code.sources import OWN_CODE
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.model.own_code.network import OwnNetwork, make_network


def own_network(folder: Path) -> OwnNetwork:
    package = write_package(folder)
    shutil.copytree(package, folder / "snapshot" / OWN_CODE / PACKAGE)
    use_folder(folder / "snapshot" / OWN_CODE)
    keys = {key.removeprefix("model."): value for key, value in NETWORK.items()}
    torch.manual_seed(0)
    config = ModelConfig(modalities=("text", "image"), **SMALL, **keys)
    model = make_network(config, SHAPES, {"digit": 10})
    assert isinstance(model, OwnNetwork)
    return model.eval()


def test_an_encoder_gets_token_types(tmp_path: Path):
    model = own_network(tmp_path)
    encoder = model.furnace_encoders()["text"]
    seen: list[torch.Tensor] = []
    encoder.register_forward_hook(lambda module, given, output: seen.append(output[0]))
    text_BT, length_B = torch.randint(1, 20, (3, 8)), torch.tensor([8, 6, 5])
    second_B = torch.tensor([4, 3, 2])
    inputs = {"text": text_BT, "image": torch.randn(3, 1, 32, 32)}
    present_BM = torch.ones(3, 2, dtype=torch.bool)
    with torch.no_grad():
        pairs = model(inputs, {"text": length_B, TEXT_SECOND: second_B}, present_BM)
        single = model(inputs, {"text": length_B}, present_BM)
        wanted, _ = encoder(text_BT, length_B, second_B)
    assert torch.equal(seen[0], wanted)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(pairs["logits"]["digit"], single["logits"]["digit"])


def test_absent_pairs_change_nothing(tmp_path: Path):
    model = own_network(tmp_path)
    inputs = {"text": torch.randint(1, 20, (2, 8)), "image": torch.randn(2, 1, 32, 32)}
    present_BM = torch.tensor([[True, True], [False, True]])
    found = []
    with torch.no_grad():
        for second in (2, 7):
            lengths = {"text": torch.tensor([8, 8]), TEXT_SECOND: torch.tensor([3, second])}
            found.append(model(inputs, lengths, present_BM)["logits"]["digit"])
    assert torch.equal(*found)
