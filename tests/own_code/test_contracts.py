"""What own modules do in a network, and the contracts that `furnace check` finds broken."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_code_study import NETWORK, PACKAGE, write_grid, write_package

from furnace_hpc.checks.modules import Finding, NetworkCheck
from furnace_hpc.checks.places import Places
from furnace_hpc.checks.small_pack import cut_pack
from furnace_hpc.checks.trained import checked_config
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.config.own_code.arguments import checked_arguments
from furnace_hpc.config.own_code.loading import load, use_folder
from furnace_hpc.config.own_code.references import Reference, references
from furnace_hpc.config.own_code.sources import OWN_CODE
from furnace_hpc.data.columns import Columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.engine.setup import build_model
from furnace_hpc.inference.model_folder import use_exported_code
from furnace_hpc.model.losses import total_loss


@pytest.fixture(scope="module")
def columns(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Columns:
    return cut_pack(small_data, tmp_path_factory.mktemp("cut") / "pack")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The user's package. A copy of it, as in a snapshot, is what is imported."""
    package = write_package(tmp_path)
    shutil.copytree(package, tmp_path / "snapshot" / OWN_CODE / PACKAGE)
    use_folder(tmp_path / "snapshot" / OWN_CODE)
    return package


def config_of(package: Path, row: dict):
    grid = read_grid(write_grid(package.parent, {"own": row}))
    return grid, checked_config(expand_rows(grid)[0].config)


def check(package: Path, columns: Columns, row: dict) -> list[Finding]:
    grid, config = config_of(package, row)
    places = Places(grid.own_code, references(config))
    return list(NetworkCheck(config, columns, places).run())


def check_grid(grid: Grid, copy: Path, columns: Columns) -> list[Finding]:
    """Check the first row of a grid, with a copy of its code."""
    for name, path in grid.own_code.entries:
        (copy / OWN_CODE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy / OWN_CODE / name)
    use_folder(copy / OWN_CODE)
    config = checked_config(expand_rows(grid)[0].config)
    return list(NetworkCheck(config, columns, Places(grid.own_code, references(config))).run())


def line_of(package: Path, text: str, file: str = "net.py") -> str:
    lines = (package / file).read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if text in line]
    return f"{package / file}:{number}"


@pytest.mark.parametrize(
    "row",
    [
        NETWORK,
        {"model.fusion": f"{PACKAGE}.fusion:Scaled", "model.fusion_args": {"scale": 2.0}},
        {"model.image": {"encoder": f"{PACKAGE}.enc:Rows", "encoder_args": {"scale": 0.5}}},
        {"model.fusion": "gated"},
        NETWORK | {"loss": {"info_nce": 0.1, "vicreg": 0.1, "unimodal": 0.1}},
    ],
    ids=["network", "fusion", "encoder", "built-in", "with losses"],
)
def test_good_modules_keep_all_contracts(package, columns, row):
    findings = check(package, columns, row)
    assert [finding.problem for finding in findings] == [""] * 7


@pytest.mark.parametrize(
    ("name", "contract", "words"),
    [
        ("WrongShape", "shapes", "features are [B, M, D], here [12, 3, 16]"),
        ("Unused", "a gradient in every trainable parameter", "forgotten.weight gets no gradient"),
        ("Detached", "a gradient in every trainable parameter", "gradient of parameter"),
        ("AlwaysDrops", "same input, same output", "two evaluations of the same batch differ"),
        ("BatchMean", "samples do not affect each other", "fewer samples"),
        ("Skips", "same calls on every rank (ZeRO-3)", "depends on the values"),
        ("Peeks", "absent modalities have no effect", "other values of the absent modality"),
    ],
)
def test_a_broken_contract_is_named(package, columns, name, contract, words):
    """The finding has the contract, what is wrong, and the user's file and line."""
    findings = check(package, columns, {"model.network": f"{PACKAGE}.net:{name}"})
    (broken,) = [finding for finding in findings if finding.problem]
    assert broken.contract == contract
    assert words in broken.problem
    assert broken.place == line_of(package, f"class {name}(")


def test_an_exception_is_named_with_its_line(package, columns):
    findings = check(package, columns, {"model.network": f"{PACKAGE}.net:Raises"})
    assert findings[-1].problem == "IndexError: no such token"
    assert findings[-1].place == line_of(package, "# line of Raises")


def test_absent_values_never_reach_a_network(package, columns):
    """Inputs of absent modalities are zeros with length 1, also in modality subsets."""
    _, config = config_of(package, NETWORK)
    model = build_model(config, columns.manifest).eval()
    seen = []
    model.module.register_forward_pre_hook(lambda module, given: seen.append(given))
    batch = BatchReader(columns, "train", config.model.modalities, ("digit",), torch.device("cpu"))
    read = batch.read(np.arange(4))
    present_BM = torch.ones(4, 3, dtype=torch.bool)
    model(read.inputs, read.lengths, present_BM, [(1,)])
    inputs, lengths, given_BM = seen[1]
    assert given_BM.tolist() == [[False, True, False]] * 4
    assert [bool(inputs[name].any()) for name in ("text", "image", "audio")] == [False, True, False]
    assert lengths["text"].tolist() == [1] * 4


def test_own_terms_are_added_to_the_loss(package, columns):
    row = {"loss.extra": {f"{PACKAGE}.losses:shrink": {"weight": 0.5, "power": 4}}}
    _, config = config_of(package, row)
    features = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    output = {"logits": {"digit": torch.zeros(1, 10)}, "features": features}
    present_BM = torch.tensor([[True, False]])
    labels = {"digit": torch.tensor([3])}
    parts = total_loss(output, labels, present_BM, config.loss, config.tasks)
    assert parts["shrink"].item() == pytest.approx((1 + 16) / 4)
    expected = parts["digit/loss"] + 0.5 * parts["shrink"]
    assert parts["loss"].item() == pytest.approx(expected.item())


def test_values_are_checked_against_the_signature(package):
    def reference(arguments: dict) -> Reference:
        path = f"{PACKAGE}.fusion:Scaled"
        return Reference("fusion", "model.fusion", path, arguments)

    given = checked_arguments(load(reference({})), reference({"scale": 3.0}))
    assert given["settings"].scale == 3.0
    with pytest.raises(ConfigError, match="model.fusion: the values for Scaled do not fit"):
        checked_arguments(load(reference({})), reference({"scale": "x"}))


def test_a_module_of_the_working_directory_is_not_used(package, tmp_path, monkeypatch):
    """A package of the same name that is on Python's path earlier is refused."""
    elsewhere = write_package(tmp_path / "elsewhere")
    monkeypatch.chdir(elsewhere.parent)
    reference = Reference("network", "model.network", f"{PACKAGE}.net:MyNet", {})
    monkeypatch.syspath_prepend(str(elsewhere.parent))
    with pytest.raises(ConfigError, match="instead of the file in"):
        load(reference)


def test_settings_of_unused_encoders_are_refused(package, columns):
    """A row that freezes an encoder which its network lacks would be the row without it."""
    row = {"model.network": f"{PACKAGE}.net:NoImages", "model.image.freeze": "all"}
    (found,) = check(package, columns, row)
    assert found.contract == "builds"
    assert "the config sets the image encoder" in found.problem
    assert "Call context.make_encoder('image')" in found.problem
    good = check(package, columns, {"model.network": f"{PACKAGE}.net:NoImages"})
    assert not [one for one in good if one.problem]


def test_an_encoder_may_have_no_parameters(package, columns):
    row = {"model.image": {"encoder": f"{PACKAGE}.enc:Means"}}
    assert not [one for one in check(package, columns, row) if one.problem]


def test_checked_rows_need_no_other_rows(package):
    """They start from new weights, with an optimizer that ZeRO stage 3 can have."""
    rows = {"own": {}, "next": {"init_from": {"variant": "own"}, "optimizer.name": "adafactor"}}
    rows["next"]["augment.mixup"] = 0.2
    rows["next"]["deepspeed.zero_optimization.stage"] = 0
    grid = read_grid(write_grid(package.parent, rows))
    config = checked_config(expand_rows(grid)[1].config)
    assert config.init_from == ()
    assert not config.augment.mixup
    assert config.optimizer.name == "adamw"


def test_compiled_code_of_an_exported_model_is_refused(package, monkeypatch):
    """Python would run it in the place of the source that the user has read."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    _, config = config_of(package, NETWORK)
    folder, exported = package.parent / "snapshot", SimpleNamespace(config=config)
    use_exported_code(folder, exported, trust_code=True)
    assert sys.dont_write_bytecode
    (folder / OWN_CODE / PACKAGE / "__pycache__").mkdir()
    with pytest.raises(ConfigError, match="has compiled code, which may differ"):
        use_exported_code(folder, exported, trust_code=True)
