"""`deterministic: true` uses torch's strict mode, and explains operations without such a mode."""

import os

import pytest
import torch
from make import make_config, make_inputs, make_model

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.determinism import explained_nondeterminism, set_up_determinism
from furnace_hpc.engine.setup import set_up_torch


@pytest.fixture
def gpu(monkeypatch):
    """Torch reports a GPU, and all settings are as before at the end."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_strict_mode_on_a_gpu(gpu):
    """With warn_only the backward pass of attention stays non-deterministic."""
    set_up_determinism(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_nothing_changes_if_it_is_not_wanted(gpu):
    set_up_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_nothing_changes_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_up_determinism(True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_error_names_the_operation_and_the_key(gpu):
    """put_ without accumulation has no deterministic form on any device."""
    set_up_determinism(True)
    with pytest.raises(ConfigError) as refused, explained_nondeterminism():
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    message = str(refused.value)
    assert message.startswith("deterministic is true, and put_ has no deterministic implementation")
    assert "Set deterministic: false" in message


def test_other_errors_stay(gpu):
    with pytest.raises(RuntimeError, match="CUDA out of memory"), explained_nondeterminism():
        raise RuntimeError("CUDA out of memory")


def test_model_trains_in_strict_mode(gpu):
    """On a CPU. A GPU has more operations without a deterministic form."""
    set_up_determinism(True)
    model = make_model().train()
    torch.cuda.is_available = lambda: False  # the fixture restores it
    output = model(*make_inputs())
    output["logits"]["digit"].square().mean().backward()
    assert all(p.grad is not None for p in model.encoders.parameters())


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_set_for_products_and_convolutions(monkeypatch, wanted):
    """Torch's own default is TF32 for convolutions alone."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        set_up_torch(make_config(tf32=wanted))
        assert (products.allow_tf32, convolutions.allow_tf32) == (wanted, wanted)
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
