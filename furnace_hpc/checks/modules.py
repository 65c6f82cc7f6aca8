"""Check a row's network in this process: shapes, gradients, absent modalities, order of calls.

B batch, M modalities.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from furnace_hpc.checks.places import Places
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.metrics import subsets
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.columns import Columns
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.engine.checkpoint.random_state import seed_everything
from furnace_hpc.engine.setup import build_model
from furnace_hpc.model.losses import total_loss
from furnace_hpc.model.network import Network
from furnace_hpc.model.own_code.modules import BrokenContract

TOLERANCE = 1e-4  # of the largest logit, between batches of different sizes
SAME_OUTPUT = "same input, same output"
STEP_SIZE = 0.01  # a layer that starts at zero gets its gradient after one step


@dataclass(frozen=True)
class Finding:
    """The result of one contract."""

    contract: str
    problem: str = ""
    """Empty if the contract is kept."""
    place: str = ""
    """The user's file and line."""


class _Broken(Exception):
    """A contract is broken. `part` is the module or parameter at fault, if it is known."""

    def __init__(self, problem: str, part: str = "") -> None:
        super().__init__(problem)
        self.part = part


class NetworkCheck:
    """The contracts of one network that need no training run."""

    def __init__(self, config: TrainConfig, columns: Columns, places: Places) -> None:
        self._config, self._columns, self._places = config, columns, places
        self.is_random = True
        """Whether training draws random numbers, besides Furnace's own dropout."""

    def run(self) -> Iterator[Finding]:
        """Yield the result of each contract. Nothing follows if the network cannot run."""
        try:
            model = build_model(self._config, self._columns.manifest)
        except Exception as error:  # the user's code may raise anything
            yield self._failed("builds", error)
            return
        yield Finding("builds")
        batch = self._batch(0, None)
        checks: list[tuple[str, Callable[[Network, Batch], None]]] = [
            ("shapes", self._check_shapes),
            (SAME_OUTPUT, self._check_same_output),
            ("absent modalities have no effect", self._check_absent),
            ("samples do not affect each other", self._check_independent),
            ("same calls on every rank (ZeRO-3)", self._check_calls),
            ("a gradient in every trainable parameter", self._check_gradients),
        ]
        for contract, check in checks:
            try:
                check(model, batch)
            except _Broken as broken:
                place = self._places.of_module(model, broken.part)
                yield Finding(contract, str(broken), place)
                if contract == SAME_OUTPUT:  # all that follows compares evaluations
                    return
            except Exception as error:  # the user's code may raise anything
                yield self._failed(contract, error)
                return
            else:
                yield Finding(contract)
        self.is_random = self._draws_numbers(model, batch)

    def _failed(self, contract: str, error: Exception) -> Finding:
        text = str(error)
        if not isinstance(error, (ConfigError, BrokenContract)):
            text = f"{type(error).__name__}: {text}"
        return Finding(contract, text, self._places.of_error(error))

    def _batch(self, start: int, end: int | None) -> Batch:
        tasks = tuple(task.name for task in self._config.tasks)
        device = torch.device("cpu")
        modalities = self._config.model.modalities
        reader = BatchReader(self._columns, "train", modalities, tasks, device)
        return reader.read(np.arange(reader.num_samples)[start:end])

    def _check_shapes(self, model: Network, batch: Batch) -> None:
        """Compute logits of all modality subsets. The network checks the shapes."""
        model.eval()
        with torch.no_grad():
            output = _forward(model, batch, batch.present_BM, with_subsets=True)
        for task, logits_BC in output["logits"].items():
            if not bool(logits_BC.isfinite().all()):
                raise _Broken(f"the logits of task {task!r} are not finite in evaluation")

    def _check_same_output(self, model: Network, batch: Batch) -> None:
        model.eval()
        with torch.no_grad():
            first, second = (_forward(model, batch, batch.present_BM) for _ in range(2))
        if not _are_equal(first, second):
            raise _Broken(
                "two evaluations of the same batch differ. Use dropout and other random numbers "
                "only if self.training is true, and change no buffer in evaluation"
            )

    def _check_absent(self, model: Network, batch: Batch) -> None:
        """Change the values and lengths of absent inputs, bit for bit without effect."""
        model.eval()
        for present_BM in _patterns(batch.present_BM):
            if bool(present_BM.all()):
                continue
            changed = _with_other_values(batch, present_BM, model.modalities)
            with torch.no_grad():
                first = _forward(model, batch, present_BM)
                second = _forward(model, changed, present_BM)
            if not _are_equal(first, second):
                names = [
                    name
                    for m, name in enumerate(model.modalities)
                    if not bool(present_BM[:, m].all())
                ]
                raise _Broken(f"other values of the absent modality {names[0]} change the output")

    def _check_independent(self, model: Network, batch: Batch) -> None:
        """Compare the logits of samples in a large and in a small batch."""
        model.eval()
        half = self._batch(0, max(1, len(batch.present_BM) // 3))
        with torch.no_grad():
            large = _forward(model, batch, batch.present_BM)["logits"]
            small = _forward(model, half, half.present_BM)["logits"]
        for task, logits_BC in small.items():
            same_BC = large[task][: len(logits_BC)]
            difference = float((logits_BC - same_BC).abs().max())
            largest = max(1.0, float(same_BC.abs().max()))
            if not difference <= TOLERANCE * largest:
                raise _Broken(
                    f"the logits of task {task!r} change by {difference:.2g} if the batch has "
                    f"fewer samples. Use no statistics of a batch, such as a batch norm, and mask "
                    f"padding"
                )

    def _check_calls(self, model: Network, batch: Batch) -> None:
        """Compare the order in which submodules are called, for different samples and presence."""
        model.train()
        first: list[str] | None = None
        half = self._batch(0, max(1, len(batch.present_BM) // 2))
        for part in (batch, half):
            for present_BM in _patterns(part.present_BM):
                with _recorded_calls(model) as calls, torch.no_grad():
                    _forward(model, part, present_BM)
                if first is None:
                    first = calls
                elif calls != first:
                    self._raise_other_calls(first, calls)

    def _raise_other_calls(self, first: list[str], calls: list[str]) -> None:
        padded = [*calls, *["nothing"] * len(first)]
        at = next(index for index, name in enumerate([*first, "nothing"]) if padded[index] != name)
        one, other = [*first, "nothing"][at], padded[at]
        raise _Broken(
            f"the order of calls depends on the values: after {at} calls one batch calls {one}, "
            f"and another calls {other}. Under ZeRO stage 3 ranks with such batches are in a "
            f"deadlock. Call every submodule for every batch, and multiply by zero",
            one if one != "nothing" else other,
        )

    def _check_gradients(self, model: Network, batch: Batch) -> None:
        """Look for parameters without a gradient in two steps."""
        model.train()
        parameters = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        reached = set[str]()
        for _ in range(2):
            model.zero_grad()
            for present_BM in _patterns(batch.present_BM):
                self._loss(model, batch, present_BM).backward()  # type: ignore[no-untyped-call]
            for name, value in parameters.items():
                if value.grad is None:
                    raise _Broken(
                        f"parameter {name} gets no gradient. Use it in forward, or remove it, or "
                        f"set its requires_grad to false",
                        name,
                    )
                if not bool(value.grad.isfinite().all()):
                    raise _Broken(f"the gradient of parameter {name} is not finite", name)
                if bool(value.grad.any()):
                    reached.add(name)
            with torch.no_grad():
                for value in parameters.values():
                    assert value.grad is not None
                    value.sub_(value.grad, alpha=STEP_SIZE)
        missing = [name for name in parameters if name not in reached]
        if missing:
            raise _Broken(
                f"the gradient of parameter {missing[0]} is zero everywhere. Check that the loss "
                f"depends on it",
                missing[0],
            )

    def _loss(self, model: Network, batch: Batch, present_BM: Tensor) -> Tensor:
        output = _forward(model, batch, present_BM)
        config = self._config
        given = (batch.labels, output["present"], config.loss, config.tasks)
        return total_loss(output, *given, class_weights=batch.class_weights)["loss"]

    def _draws_numbers(self, model: Network, batch: Batch) -> bool:
        """Whether the loss in training depends on random numbers."""
        model.train()
        losses = []
        for seed in range(2):
            seed_everything(seed)
            with torch.no_grad():
                losses.append(float(self._loss(model, batch, batch.present_BM)))
        return losses[0] != losses[1]


def _forward(
    model: Network, batch: Batch, present_BM: Tensor, with_subsets: bool = False
) -> dict[str, Any]:
    chosen: Sequence[tuple[int, ...]] = ()
    if with_subsets:
        chosen = subsets(tuple(range(len(model.modalities))))
    output: dict[str, Any] = model(batch.inputs, batch.lengths, present_BM, chosen)
    return output


def _patterns(present_BM: Tensor) -> list[Tensor]:
    """The presence of a batch, and for each modality one without it where another one is left."""
    patterns = [present_BM]
    for m in range(present_BM.shape[1]):
        without_BM = present_BM.clone()
        without_BM[:, m] = False
        kept_B1 = without_BM.any(1, keepdim=True)
        without_BM = torch.where(kept_B1, without_BM, present_BM)
        if not torch.equal(without_BM, present_BM):
            patterns.append(without_BM)
    return patterns


def _with_other_values(batch: Batch, present_BM: Tensor, modalities: tuple[str, ...]) -> Batch:
    """The batch with other values and lengths of all absent inputs."""
    inputs, lengths = dict(batch.inputs), dict(batch.lengths)
    for m, name in enumerate(modalities):
        values = inputs[name]
        others = values.flip(-1).roll(1, 0) + (3.7 if values.is_floating_point() else 0)
        is_present = present_BM[:, m].view(-1, *[1] * (values.dim() - 1))
        inputs[name] = torch.where(is_present, values, others.to(values.dtype))
        if name in lengths:
            lengths[name] = torch.where(present_BM[:, m], lengths[name], lengths[name].roll(1))
    return replace(
        batch, inputs=inputs, lengths=lengths, present_BM=present_BM, complete=frozenset()
    )


def _are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether logits and features are equal bit for bit."""
    pairs = [(one["features"], other["features"])]
    pairs += [(logits, other["logits"][task]) for task, logits in one["logits"].items()]
    return all(torch.equal(first, second) for first, second in pairs)


@contextmanager
def _recorded_calls(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of submodules in the order of their calls."""
    calls: list[str] = []

    def record(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: calls.append(name)

    handles = [
        module.register_forward_pre_hook(record(name)) for name, module in model.named_modules()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
