"""Scores of a whole split, from all its logits at once: a mean over batches or ranks is not the same number.

N samples, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional


def single_label_scores(logits_NC: Tensor, label_N: Tensor) -> dict[str, float]:
    """Accuracy, macro F1 (over classes that occur in labels or predictions) and mean cross-entropy."""
    logits_NC = logits_NC.double()
    predicted_N = logits_NC.argmax(1)
    classes = torch.arange(logits_NC.shape[1], device=logits_NC.device).unsqueeze(1)
    is_label, is_predicted = label_N == classes, predicted_N == classes
    hits = (is_label & is_predicted).sum(1).double()
    sizes = (is_label.sum(1) + is_predicted.sum(1)).double()
    f1 = (2 * hits / sizes)[sizes > 0]
    return {
        "accuracy": (predicted_N == label_N).double().mean().item(),
        "f1_macro": f1.mean().item(),
        "loss": functional.cross_entropy(logits_NC, label_N).item(),
    }
