"""The encoder of numbers, alone and in a network with texts."""

import pytest
import torch
from make import DESIGNS, make_model

from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.numbers import NumberEncoder

NAMES, COLUMNS = ("text", "numbers"), 3
SHAPES = InputShapes(20, 0, 1, 40, numbers=COLUMNS)
FUSIONS = {name: part for name, part in DESIGNS.items() if name != "transformers"}
design = pytest.mark.parametrize("changes", FUSIONS.values(), ids=FUSIONS)


def encoder() -> NumberEncoder:
    torch.manual_seed(0)
    return NumberEncoder(COLUMNS, width=8, feedforward=12, dropout=0.5).eval()


def inputs(B: int = 4):
    """Texts and numbers. The second number of the second sample is missing."""
    generator = torch.Generator().manual_seed(2)
    numbers = torch.stack([torch.randn(B, COLUMNS, generator=generator), torch.ones(B, COLUMNS)], 2)
    numbers[1, 1] = 0
    made = {"text": torch.randint(1, 20, (B, 9), generator=generator), "numbers": numbers}
    return made, {"text": torch.full((B,), 9)}, torch.ones(B, 2, dtype=torch.bool)


def network(**changes):
    return make_model(SHAPES, modalities=NAMES, **changes)


def logits(model, made, lengths, present, **options):
    with torch.no_grad():
        return model(made, lengths, present, **options)["logits"]["digit"]


def test_a_column_is_its_number_times_a_vector():
    model, (made, _, _) = encoder(), inputs()
    tokens, mask = model(made["numbers"], None)
    assert tokens.shape == (4, COLUMNS + 1, 8)
    assert mask.tolist() == [[True] * 4, [True, True, False, True], *[[True] * 4] * 2]
    for column in range(COLUMNS):
        number = made["numbers"][2, column, 0]
        expected = number * model.scale_ND[column] + model.bias_ND[column]
        torch.testing.assert_close(tokens[2, column + 1], expected)
    row = torch.cat([made["numbers"][1, :, 0], torch.tensor([1.0, 0.0, 1.0])])
    torch.testing.assert_close(tokens[1, 0], model.row(row))


def test_a_missing_number_differs_from_the_mean():
    """The mean is 0, too, after standardisation."""
    model, (made, _, _) = encoder(), inputs()
    made["numbers"][0, 0] = torch.tensor([0.0, 1.0])
    known = model(made["numbers"], None)[0][0, 0]
    made["numbers"][0, 0] = 0
    assert (model(made["numbers"], None)[0][0, 0] - known).abs().max() > 1e-2


@design
def test_each_number_changes_the_answer(changes):
    model, (made, lengths, present) = network(**changes), inputs()
    before = logits(model, made, lengths, present)
    for column in range(COLUMNS):
        changed = {name: value.clone() for name, value in made.items()}
        changed["numbers"][:, column, 0] += 1
        assert (logits(model, changed, lengths, present) - before).abs().amax(1).min() > 1e-5


@design
def test_absent_numbers_have_no_effect(changes):
    """Whatever the values are, NaN included. Other samples have no effect either."""
    model, (made, lengths, present) = network(**changes), inputs()
    present[0, 1] = False
    before = logits(model, made, lengths, present)
    made["numbers"][0] = float("nan")
    assert torch.equal(logits(model, made, lengths, present), before)
    alone = logits(model, *({k: v[:2] for k, v in d.items()} for d in (made, lengths)), present[:2])
    torch.testing.assert_close(alone, before[:2], atol=1e-5, rtol=0)


@design
def test_subsets_leave_the_numbers_out(changes):
    """A subset gives the logits of samples that lack the other modality."""
    model, (made, lengths, present) = network(**changes), inputs()
    whole = model(made, lengths, present, subsets=[(0,), (1,)])
    for m, subset in enumerate(whole["subsets"]):
        only = torch.zeros_like(present)
        only[:, m] = True
        expected = logits(model, made, lengths, only)
        torch.testing.assert_close(subset["digit"], expected, atol=1e-5, rtol=0)


@design
def test_complete_rows_need_no_mask(changes):
    model, (made, lengths, present) = network(**changes), inputs()
    made["numbers"][1, 1] = torch.tensor([0.3, 1.0])
    masked = logits(model, made, lengths, present)
    found = logits(model, made, lengths, present, complete=frozenset(NAMES))
    torch.testing.assert_close(found, masked, atol=1e-5, rtol=0)


@design
def test_numbers_train_under_modality_dropout(changes):
    """Each parameter of the encoder gets a gradient, and none is NaN."""
    model, (made, lengths, present) = network(**changes, modality_dropout=0.5).train(), inputs(16)
    torch.manual_seed(1)
    output = model(made, lengths, present)
    assert not output["present"].all()
    output["logits"]["digit"].square().sum().backward()
    for name, weight in model.encoders["numbers"].named_parameters():
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name
