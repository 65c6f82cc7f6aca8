"""Losses are means over samples; scores agree with scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from furnace_hpc.model.losses import consistency, feature_norm, total_loss
from furnace_hpc.model.scores import single_label_scores
from furnace_hpc.spec.config import METRICS, LossConfig, TaskConfig


def batch(B: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, 3, 8, generator=generator)
    output = {"logits": {"digit": torch.randn(B, 10, generator=generator)}, "features": features}
    labels = {"digit": torch.randint(0, 10, (B,), generator=generator)}
    present = torch.rand(B, 3, generator=generator) > 0.3
    present[:, 0] = True
    return output, labels, present


def test_the_loss_of_a_batch_is_the_mean_of_its_samples_losses():
    output, labels, present = batch(16)
    tasks, config = (TaskConfig(name="digit", weight=2.0),), LossConfig(alpha=0.5, beta=0.3)
    whole = total_loss(output, labels, present, config, tasks)
    alone = []
    for i in range(16):
        row = {
            "logits": {"digit": output["logits"]["digit"][i : i + 1]},
            "features": output["features"][i : i + 1],
        }
        alone.append(total_loss(row, {"digit": labels["digit"][i : i + 1]}, present[i : i + 1], config, tasks)["loss"])
    torch.testing.assert_close(whole["loss"], torch.stack(alone).mean())
    by_hand = 2.0 * whole["digit/loss"] + 0.5 * whole["consistency"] + 0.3 * whole["norm"]
    torch.testing.assert_close(whole["loss"], by_hand)


def test_the_norm_term_does_not_grow_with_the_batch_as_the_articles_does():
    features = torch.randn(8, 3, 256, generator=torch.Generator().manual_seed(0))
    many = features.repeat(16, 1, 1)
    present, present_many = torch.ones(8, 3).bool(), torch.ones(128, 3).bool()
    torch.testing.assert_close(feature_norm(features, present), feature_norm(many, present_many))
    assert torch.norm(many) / torch.norm(features) > 3.9  # the article's form: 4 times for 16 times the batch


def test_consistency_by_hand_and_over_present_pairs_only():
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]]])
    pairs = [2.0, 8.0, 10.0]  # mean over width of (t-i)^2, (t-a)^2, (i-a)^2
    assert consistency(features, torch.tensor([[True, True, True]])).item() == pytest.approx(sum(pairs) / 3)
    assert consistency(features, torch.tensor([[True, False, True]])).item() == 8.0
    assert consistency(features, torch.tensor([[False, False, True]])).item() == 0.0


def test_the_gradient_of_the_norm_of_an_absent_modality_is_zero_and_no_nan():
    features = torch.zeros(2, 3, 4, requires_grad=True)
    feature_norm(features, torch.tensor([[True, True, False]] * 2)).backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_scores_agree_with_scikit_learn_also_for_classes_that_never_occur():
    generator = torch.Generator().manual_seed(0)
    logits, label = (
        torch.randn(300, 10, generator=generator),
        torch.randint(0, 7, (300,), generator=generator),
    )
    logits[torch.arange(300), label] += 1.0
    logits[:, 9] = -50
    scores = single_label_scores(logits, label)
    predicted = logits.argmax(1).numpy()
    assert scores["accuracy"] == accuracy_score(label, predicted)
    np.testing.assert_allclose(scores["f1_macro"], f1_score(label, predicted, average="macro"), rtol=1e-12)
    np.testing.assert_allclose(scores["loss"], log_loss(label, logits.double().softmax(1), labels=range(10)), rtol=1e-9)


def test_the_login_node_knows_exactly_the_metrics_that_scores_gives():
    assert set(METRICS["single_label"]) == set(single_label_scores(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])))
