"""Tensor Fusion, the example of own code in experiments/own_network."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from local_study import submit

from furnace_hpc.engine.checkpoint.shards import whole_weights
from furnace_hpc.model.own_code.contracts import FusionContext

FILE = Path(__file__).parents[2] / "experiments/own_network/tensor_fusion/fusion.py"
MODALITIES = ("text", "image", "audio")
SMALL = {"width": 16, "num_heads": 2, "feedforward": 32}


@pytest.fixture(scope="module")
def fusion() -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("example_fusion", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.TensorFusion(FusionContext(MODALITIES, width=6, dropout=0.0), size=2).eval()


def extended(fusion: torch.nn.Module, features_BMD: torch.Tensor, m: int) -> torch.Tensor:
    return torch.cat([torch.ones(1), fusion.reduced[m](features_BMD[0, m])])


def test_the_product_is_the_paper_s(fusion):
    """Compare it with the outer product of the extended vectors, entry by entry."""
    features_BMD = torch.randn(1, 3, 6)
    product = fusion.product(features_BMD, torch.ones(1, 3, dtype=torch.bool))[0]
    x, y, w = (extended(fusion, features_BMD, m) for m in range(3))
    for i in range(3):
        for j in range(3):
            for k in range(3):
                assert product[(i * 3 + j) * 3 + k].item() == pytest.approx(
                    (x[i] * y[j] * w[k]).item(), abs=1e-6
                )


def test_an_absent_modality_leaves_the_smaller_tensor(fusion):
    """Without audio the entries with its constant are the tensor of text and image."""
    features_BMD = torch.randn(1, 3, 6)
    product = fusion.product(features_BMD, torch.tensor([[True, True, False]]))[0].view(3, 3, 3)
    x, y = (extended(fusion, features_BMD, m) for m in range(2))
    assert torch.allclose(product[:, :, 0], torch.outer(x, y))
    assert not product[:, :, 1:].any()


def test_features_of_an_absent_modality_have_no_effect(fusion):
    features_BMD, present_BM = torch.randn(2, 3, 6), torch.tensor([[True, False, True]] * 2)
    changed = features_BMD.clone()
    changed[:, 1] += 5
    before = fusion(features_BMD, present_BM, [], [])
    assert torch.equal(before, fusion(changed, present_BM, [], []))


@pytest.mark.slow
def test_the_shipped_grid_trains_the_fusion(tmp_path, small_root):
    """All its parameters get a gradient, and a run without own code is beside it."""
    shutil.copytree(FILE.parents[1], tmp_path / "study")
    grid = tmp_path / "study" / "tensor_fusion.yaml"
    small = [f"--set=model.{key}={value}" for key, value in SMALL.items()]
    chosen = ["--variant", "tensor", "--variant", "concat", "--seed", "0"]
    lengths = ["--set=steps=4", "--set=checkpoint_every=2", "--set=deepspeed=zero1_fp32"]
    done = submit(grid, small_root, *small, *chosen, *lengths)
    assert "2 runs (2 start)" in done.stdout, done.stdout + done.stderr
    runs = tmp_path / "study" / "runs" / "tensor_fusion"
    results = {
        file.parent.name.split("-")[0]: json.loads(file.read_text())
        for file in runs.glob("*-s0-*/result.json")
    }
    assert results.keys() == {"tensor", "concat"}
    assert results["tensor"]["num_parameters"] != results["concat"]["num_parameters"]
    (run,) = runs.glob("tensor-s0-*")
    before, after = (whole_weights(run / f"checkpoints/step-{step}" / "zero") for step in (2, 4))
    own = [name for name in after if name.startswith("fusion.")]
    assert len(own) > 3
    assert all(not torch.equal(before[name], after[name]) for name in own)
