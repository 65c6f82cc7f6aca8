"""Mixup: mixed encoder outputs and losses, pairs, and what is refused."""

import numpy as np
import pytest
import torch
from make import DESIGNS, make_config, make_inputs, make_model
from torch.nn import functional

from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.data.loading.augment import Augmenter
from furnace_hpc.data.loading.draws import Stream, uniform
from furnace_hpc.model.losses import mixed_loss, task_loss, total_loss
from furnace_hpc.model.network import mixed


def test_tokens_are_mixed_with_one_weight():
    """Positions that only one sample has count as zero for the other."""
    tokens = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    absent = torch.zeros(2, 1, dtype=torch.bool), torch.zeros(2, 1, 2)
    present = torch.tensor([[True, False], [True, True]])
    weight = torch.tensor([0.75, 0.5])
    parts, masks, both = mixed(
        [tokens, absent[1]], [mask, absent[0]], present, torch.tensor([1, 0]), weight
    )
    first = tokens[0] * mask[0].unsqueeze(1), tokens[1] * mask[1].unsqueeze(1)
    torch.testing.assert_close(parts[0][0], 0.75 * first[0] + 0.25 * first[1])
    torch.testing.assert_close(parts[0][1], 0.5 * first[1] + 0.5 * first[0])
    assert masks[0].tolist() == [[True, True, False], [True, True, False]]
    assert both.tolist() == [[True, True], [True, True]]


@pytest.mark.parametrize("design", DESIGNS)
def test_weights_one_and_zero_select_a_sample(design):
    """With weight 1 the outputs are the sample's own, and with 0 those of its partner."""
    model = make_model(**DESIGNS[design])
    inputs, lengths, present = make_inputs(B=4)
    lengths = {name: torch.tensor([4, 5, 6, 7]) for name in lengths}
    present[1, 0] = False
    plain = model(inputs, lengths, present)["logits"]["digit"]
    # partners with the same modalities and lengths, because masks are joined
    partner = torch.arange(4)
    own = model(inputs, lengths, present, mix=(partner, torch.ones(4)))["logits"]["digit"]
    torch.testing.assert_close(own, plain)
    twin = {name: torch.cat([part[:1], part[2:3]]) for name, part in inputs.items()}
    lengths = {name: torch.tensor([5, 5]) for name in lengths}
    present = torch.ones(2, 3, dtype=torch.bool)
    plain = model(twin, lengths, present)["logits"]["digit"]
    swapped = (torch.tensor([1, 0]), torch.zeros(2))
    other = model(twin, lengths, present, mix=swapped)["logits"]["digit"]
    torch.testing.assert_close(other, plain.flip(0))


def soft_targets(labels, weight, partner, count):
    one_hot = functional.one_hot(labels, count).float()
    return weight.unsqueeze(1) * one_hot + (1 - weight).unsqueeze(1) * one_hot[partner]


def test_the_loss_is_that_of_mixed_labels():
    """Zhang et al. (2018): cross-entropy is linear in the label. Squared error: same gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, requires_grad=True)
    weight, partner = torch.rand(6, generator=generator), torch.tensor([1, 2, 3, 4, 5, 0])
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    task = TaskConfig(name="t")
    found = mixed_loss(logits, labels, task, mix=(partner, weight))
    expected = functional.cross_entropy(
        logits, soft_targets(labels, weight, partner, 5), reduction="none"
    )
    torch.testing.assert_close(found, expected)

    many = torch.randint(0, 2, (6, 5), generator=generator).float()
    task = TaskConfig(name="t", kind="multi_label")
    target = weight.unsqueeze(1) * many + (1 - weight).unsqueeze(1) * many[partner]
    found = mixed_loss(logits, many, task, mix=(partner, weight))
    expected = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(found, expected.mean(1))

    numbers = torch.randn(6, 5, generator=generator)
    task = TaskConfig(name="t", kind="regression")
    target = weight.unsqueeze(1) * numbers + (1 - weight).unsqueeze(1) * numbers[partner]
    ours = mixed_loss(logits, numbers, task, mix=(partner, weight)).sum()
    theirs = task_loss(logits, target, task).sum()
    gradients = [torch.autograd.grad(value, logits)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_all_loss_terms_accept_a_mixture():
    config = make_config(
        loss={"unimodal": 0.5, "info_nce": 0.1, "vicreg": 0.1, "alpha": 0.1},
        augment={"mixup": 0.4},
        micro_batch_size=4,
    )
    model = make_model().train()
    inputs, lengths, present = make_inputs(B=4)
    mix = torch.tensor([1, 2, 3, 0]), torch.tensor([0.2, 0.9, 0.5, 1.0])
    output = model(inputs, lengths, present, mix=mix)
    labels = {"digit": torch.tensor([0, 1, 2, 3])}
    terms = total_loss(output, labels, output["present"], config.loss, config.tasks, mix=mix)
    terms["loss"].backward()
    assert terms["unimodal"].isfinite()
    assert all(p.grad is not None for p in model.encoders.parameters() if p.requires_grad)


# --- pairs ---


class _Manifest:
    special_tokens = {}
    preprocessing = {}
    pad_id = 0


def augmenter(alpha=0.4, seed=3):
    return Augmenter(make_config(augment={"mixup": alpha}).augment, seed, _Manifest(), ())


def test_pairs_do_not_depend_on_the_order():
    """Each sample has one partner, which depends on the samples of the micro-batch alone."""
    rows, epochs = np.array([7, 3, 11, 20, 4]), np.array([0, 0, 0, 1, 1])
    made = augmenter()
    found = {}
    for order in (np.arange(5), np.array([4, 2, 0, 1, 3])):
        partner, weight = made.mix(made.draw(rows[order], epochs[order]))
        assert sorted(partner) == list(range(5))
        assert (partner != np.arange(5)).all()
        pairs = {
            int(row): (int(rows[order][other]), float(own))
            for row, other, own in zip(rows[order], partner, weight, strict=True)
        }
        found.setdefault("pairs", pairs)
        assert pairs == found["pairs"]
    other = augmenter(seed=4).mix(made.draw(rows, epochs))[1]
    assert (other != made.mix(made.draw(rows, epochs))[1]).all()


def test_weights_have_the_beta_distribution():
    """Mean 1/2 and variance 1 / (4 (2 a + 1)), independent of the order of pairs."""
    rows = np.arange(4000)
    made = augmenter(alpha=0.4)
    _, weight = made.mix(made.draw(rows, np.zeros_like(rows)))
    assert abs(weight.mean() - 0.5) < 0.02
    assert weight.var() == pytest.approx(1 / (4 * 1.8), abs=0.006)
    order = uniform(3, np.zeros_like(rows), rows, Stream.MIXUP, 1)[:, 0]
    assert abs(np.corrcoef(order, weight)[0, 1]) < 0.05


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch_size": "auto"}, "micro_batch_size is auto, and augment.mixup depends"),
        ({"micro_batch_size": 1}, "micro_batch_size is 1"),
        ({"tasks": [{"name": "digit", "kind": "ordinal"}]}, "task 'digit' is ordinal"),
    ],
)
def test_configs_that_cannot_be_mixed(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(augment={"mixup": 0.2}, **changes)


def test_its_micro_batch_is_never_halved():
    from furnace_hpc.engine.micro_batch import half

    assert half(make_config(), 8) == 4
    assert half(make_config(augment={"mixup": 0.2}), 8) is None
