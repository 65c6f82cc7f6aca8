"""compile: the blocks that are compiled, the errors, and equal results."""

import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from make import make_inputs, make_model

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.speed import compilation
from furnace_hpc.engine.speed.compilation import compile_blocks, explained_compilation

CPU = torch.device("cpu")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process in which the start has turned the compiler off.

    torch imports torch._dynamo here, which takes two seconds.
    """
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield monkeypatch


def test_blocks_are_compiled_for_fixed_shapes(environment):
    """Two layers of BERT, ViT and the AST each, and one block of the fusion."""
    compiled: list[str] = []
    environment.setattr(
        torch.nn.Module,
        "compile",
        lambda module, dynamic: compiled.append(f"{type(module).__name__} {dynamic}"),
    )
    layers = {"text_layers": 2, "image_layers": 2, "audio_layers": 2, "fusion_layers": 1}
    model = make_model(image_encoder="vit", audio_encoder="transformer", **layers)
    compile_blocks(model, CPU)
    names = ["ASTLayer", "AttentionBlock", "BertLayer", "ViTLayer"]
    assert sorted(set(compiled)) == [f"{name} False" for name in names]
    assert len(compiled) == 7
    assert os.environ["TORCHDYNAMO_DISABLE"] == "0"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_compiled_block_gives_the_same_values(environment, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("no g++")
    environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    environment.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    gradients = []
    for is_compiled in (False, True):
        model = make_model(modalities=("image",), width=16, feedforward=16, num_heads=2).train()
        if is_compiled:
            compile_blocks(model, CPU)
        inputs, _, present = make_inputs()
        output = model({"image": inputs["image"]}, {}, present[:, :1])
        output["logits"]["digit"].square().sum().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients.append(found)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_missing_compiler_is_an_error(environment, tmp_path):
    environment.setenv("PATH", str(tmp_path))
    environment.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler on the nodes: no g\+\+ in PATH"):
        compile_blocks(make_model(), CPU)


def test_missing_triton_is_an_error(environment):
    """It is needed on the device of the run. The network is still on the CPU at that time."""
    environment.setattr(compilation, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package triton, which is not installed"):
        compile_blocks(make_model(), torch.device("cuda"))


def test_a_gpu_needs_no_cpp_compiler(environment, tmp_path):
    environment.setenv("PATH", str(tmp_path))
    environment.setattr(compilation, "find_spec", lambda name: name)
    environment.setattr(torch.nn.Module, "compile", lambda module, dynamic: None)
    compile_blocks(make_model(), torch.device("cuda"))


def test_errors_of_the_compiler_are_explained():
    from torch._inductor.exc import InvalidCxxCompiler

    with (
        pytest.raises(ConfigError, match=r"InvalidCxxCompiler: .*Set compile: false"),
        explained_compilation(True),
    ):
        raise InvalidCxxCompiler


@pytest.mark.parametrize("is_compiled", [True, False])
def test_other_errors_pass(is_compiled):
    with pytest.raises(RuntimeError, match="out of memory"), explained_compilation(is_compiled):
        raise RuntimeError("out of memory")
