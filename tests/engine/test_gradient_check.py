"""The norm of the gradient is checked, not each tensor: fewer launches, same bits and errors."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import step_work
import torch
from forked_ranks import run_on_ranks

from furnace_hpc.engine.speed.gradient_check import GradientCheck

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_norm_replaces_the_check_of_each_tensor(tmp_path, stage):
    [answers] = run_on_ranks(step_work.gradient_checks, 1, tmp_path, stage)
    default, file, tensors = answers["default"], answers["file"], answers["tensors"]
    assert default["sha256"] == file["sha256"]
    assert file["calls"] <= 2 * tensors + 60, answers
    if stage != "zero3":  # it never checks each tensor in bf16
        assert file["calls"] < default["calls"] - 5 * tensors, answers
    for answer in (default, file):
        assert answer["error"].startswith("the gradient is not finite")


@pytest.mark.slow
def test_launches_of_a_large_model(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, BENCHMARKS])
    [counts] = run_on_ranks(step_work.launches_of_stages, 1, tmp_path)
    assert {tensors for _, tensors in counts.values()} == {429}
    assert all(count <= 950 for count, _ in counts.values()), counts


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("on_device", [True, False])
def test_one_bad_step_is_found_later(bad, on_device):
    """Some stages give the norm as a tensor, some as a number."""
    check = GradientCheck()
    for step, norm in enumerate((1.0, bad, 2.0, bad), 11):
        value = torch.tensor(norm) if on_device else norm
        check.add(SimpleNamespace(get_global_grad_norm=lambda value=value: value), step)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 12"):
        check.check()


def test_finite_norms_pass():
    check = GradientCheck()
    for norm in (0.0, torch.tensor(3.0), None):
        check.add(SimpleNamespace(get_global_grad_norm=lambda norm=norm: norm), 1)
    check.check()
