"""Forward pass and losses read nothing back from the device, and copy no small tensor to it."""

import traceback
from pathlib import Path

import pytest
import torch
from make import DESIGNS, make_config, make_inputs, make_model
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import furnace_hpc
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import FusionModel

OWN = str(Path(furnace_hpc.__file__).parent)
# .item() and bool() of a tensor, torch.tensor(...), and an index that is a list
WAITS = ("aten._local_scalar_dense", "aten.lift_fresh", "aten.nonzero", "aten.is_nonzero")


class Waits(TorchDispatchMode):
    """Record where this project's code makes the host wait. Other libraries are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if str(function).startswith(WAITS):
            frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename][:-1]
            if frames[-1].filename.startswith(OWN):
                self.places.add(f"{Path(frames[-1].filename).name}: {frames[-1].line}")
        return function(*arguments, **(keywords or {}))


def step(model: FusionModel) -> None:
    config = make_config(loss__alpha=0.5, loss__beta=0.3, loss__info_nce=1.0, loss__unimodal=1.0)
    inputs, lengths, present = make_inputs()
    output = model(inputs, lengths, present)
    labels = {"digit": torch.arange(4)}
    total_loss(output, labels, output["present"], config.loss, config.tasks)["loss"].backward()


@pytest.mark.parametrize("design", DESIGNS)
def test_a_step_waits_for_nothing(monkeypatch, design):
    # the check of inputs is for the CPU alone
    monkeypatch.setattr(FusionModel, "_check_present", lambda self, present_BM: None)
    model = make_model(**DESIGNS[design]).train()
    step(model)  # the first step may fill caches
    with Waits() as waits:
        step(model)
    assert waits.places == set()


def test_the_recorder_finds_waits(monkeypatch):
    """The check of inputs reads a value, so it is found."""
    model = make_model()
    with Waits() as waits:
        step(model)
    assert any("present_BM.any" in place for place in waits.places)


@pytest.mark.parametrize("design", ["transformers", "cross_attention", "bottleneck"])
def test_complete_modalities_need_no_mask(monkeypatch, design):
    """Values and gradients stay the same, bit for bit, and no attention gets a mask."""
    given: list[bool] = []
    attention = functional.scaled_dot_product_attention

    def noting(*arguments, attn_mask=None, **keywords):
        given.append(attn_mask is not None)
        return attention(*arguments, attn_mask=attn_mask, **keywords)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noting)
    inputs, lengths, present = make_inputs(frames=32)
    found, masked = [], []
    for complete in ((), ("text", "image", "audio")):
        model = make_model(**DESIGNS[design]).train()
        given.clear()
        output = model(inputs, lengths, present, complete=frozenset(complete))
        output["logits"]["digit"].square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([output["logits"]["digit"], *gradients])
        masked.append(set(given))
    assert True in masked[0]
    assert masked[1] == {False}
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_hidden_modality_needs_its_mask():
    """Complete modalities are no longer complete if some of them are left out."""
    inputs, lengths, present = make_inputs(frames=32)
    for design in ("cross_attention", "bottleneck"):
        model, names = make_model(**DESIGNS[design]), frozenset(("text", "image", "audio"))
        subsets = [(0,), (1, 2), (0, 1, 2)]
        with torch.no_grad():
            with_masks = model(inputs, lengths, present, subsets)["subsets"]
            without = model(inputs, lengths, present, subsets, names)["subsets"]
        pairs = zip(with_masks, without, strict=True)
        assert all(torch.equal(a["digit"], b["digit"]) for a, b in pairs)
