"""Call functions of the user's own code: terms of the loss, and metrics."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.own_code.arguments import checked_arguments
from furnace_hpc.config.own_code.loading import folder_in_use, load
from furnace_hpc.config.own_code.references import (
    LossTerm,
    Reference,
    loss_reference,
    metric_reference,
)
from furnace_hpc.model.own_code.contracts import LossInputs
from furnace_hpc.model.own_code.modules import BrokenContract, check_shape


def own_loss(path: str, term: LossTerm, inputs: LossInputs) -> tuple[str, Tensor]:
    """The name and value of a term of loss.extra."""
    reference = loss_reference(path, term)
    value: Tensor = _function(reference, 1)(inputs)
    check_shape(value, (), "a term of the loss is a scalar", path)
    return reference.name, value.float()


def own_metrics(
    extra: Mapping[str, dict[str, Any]], logits_NC: Tensor, labels: Tensor
) -> dict[str, float]:
    """Name -> value of each function of evaluation.extra."""
    found = {}
    for path, arguments in extra.items():
        reference = metric_reference(path, arguments)
        value = _function(reference, 2)(logits_NC, labels)
        try:
            found[reference.name] = float(value)
        except (TypeError, ValueError):
            problem = f"a metric returns one number. It returned {type(value).__name__}"
            raise BrokenContract("shapes", path, problem) from None
    return found


def _function(reference: Reference, num_given: int) -> Callable[..., Any]:
    arguments = json.dumps(reference.arguments, sort_keys=True)
    folder = str(folder_in_use())
    parts = (reference.kind, reference.key, reference.path, arguments, num_given, folder)
    return _loaded(*parts)


@lru_cache(maxsize=64)
def _loaded(*parts: Any) -> Callable[..., Any]:
    """Load a function once, with its checked arguments."""
    kind, key, path, arguments, num_given, _ = parts
    reference = Reference(kind, key, path, json.loads(arguments))
    function = load(reference)
    if not callable(function):
        raise ConfigError(f"{key} has {path}, which is no function. Name one")
    return partial(function, **checked_arguments(function, reference, num_given))
