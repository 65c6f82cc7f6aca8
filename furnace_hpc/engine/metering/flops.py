"""Count the FLOPs of the model for one micro-batch, without computing anything.

The rule: torch's FlopCounterMode counts matrix products, convolutions and attention of one forward
and backward pass. A product of m x k and k x n counts 2 m k n. Other operations and the optimizer
count nothing. Recomputation (activation checkpointing, flash attention) does not count. Padding
inside a batch counts, because it is computed. InfoNCE and VICReg count as on one rank.

The passes are made on torch's meta device, which has shapes and no values. Attention takes the
plain path there, so its backward counts two products for each of forward.

The only size that differs between micro-batches is the length of the longest text. All FLOPs are at
most quadratic in it. So three counts give the FLOPs of any batch exactly. If the packed texts can
only have one or two lengths, as many counts do. A count takes most of a second of a CPU.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from furnace_hpc.config.manifest import TEXT_SECOND, Manifest
from furnace_hpc.config.sections.loss import LossConfig
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.features.reader import mask_key
from furnace_hpc.data.loading.batches import TEXT_MULTIPLE, Batch
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.model.losses import total_loss
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import write_atomically

NO_FEATURES: Mapping[str, tuple[int, int]] = {}
Coefficients = tuple[float, float, float]
"""Of 1, T and T^2, where T is the number of text tokens in units of TEXT_MULTIPLE."""


def batch_terms(batch: Batch) -> Coefficients:
    """1, T and T^2 of a batch. Sums of them over batches, times the coefficients, are FLOPs."""
    text = batch.inputs.get("text")
    T = 1.0
    if text is not None:
        T = text.shape[1] / TEXT_MULTIPLE
    return 1.0, T, T * T


def flops_of(coefficients: Coefficients, terms: tuple[float, ...]) -> float:
    """FLOPs of the batches with these sums of terms."""
    return sum(c * term for c, term in zip(coefficients, terms, strict=True))


def step_coefficients(
    model: nn.Module,
    config: TrainConfig,
    manifest: Manifest,
    micro_batch_size: int,
    cache: Path,
    features: Mapping[str, tuple[int, int]] = NO_FEATURES,
) -> Coefficients | None:
    """Count, or read what another run of the grid has counted. None if the model cannot be counted.

    Args:
        model: the network on any device. It is not changed.
        config: of the run.
        manifest: of the packed data set, which gives the shapes of a batch.
        micro_batch_size: samples of a micro-batch.
        cache: folder of counts. It may be deleted at any time.
        features: modality -> tokens and width of the longest sample, if the network gets features
            of a frozen encoder.
    """
    sizes = {name: list(column.shape) for name, column in manifest.columns.items()}
    key = [
        *(config.model.model_dump(mode="json"), _computed_terms(config.loss)),
        *(config.model_dump(mode="json")["tasks"], sizes, _classes(config, manifest)),
        *(micro_batch_size, manifest.vocab_size, torch.__version__, code_hash()),
        *sorted(features.items()),
    ]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"flops-{digest}.json"
    with suppress(OSError, ValueError, TypeError):
        one, linear, quadratic = map(float, json.loads(read_regular(path)))
        return one, linear, quadratic
    try:
        found = _count(model, config, manifest, micro_batch_size, features)
    except Exception as error:  # a measurement must not end the run
        with suppress(OSError):
            print(f"WARNING: the FLOPs of the model were not counted: {error}", flush=True)
        return None
    with suppress(OSError):
        cache.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(found))
    return found


def _computed_terms(config: LossConfig) -> dict[str, Any]:
    """The settings of the loss that change its FLOPs. Of a number only whether it is 0 does."""
    settings = config.model_dump(mode="json")
    return {
        name: bool(value) if isinstance(value, float) else value for name, value in settings.items()
    }


def _count(
    model: nn.Module,
    config: TrainConfig,
    manifest: Manifest,
    micro_batch_size: int,
    features: Mapping[str, tuple[int, int]],
) -> Coefficients:
    """Fit the three coefficients through counts at up to three lengths of text."""
    values, counts = _meta_values(model), []
    lengths = _lengths(config, manifest)
    for num_tokens in lengths:
        batch = _meta_batch(config, manifest, micro_batch_size, num_tokens)
        for name, shape in features.items():
            _replace_by_features(batch, name, shape, num_tokens)
        counts.append(count_flops(model, values, config, batch))
    if len(counts) == 1:
        return float(counts[0]), 0.0, 0.0
    if len(counts) == 2:
        first, last = (num_tokens / TEXT_MULTIPLE for num_tokens in lengths)
        linear = (counts[1] - counts[0]) / (last - first)
        return counts[0] - linear * first, linear, 0.0
    first, second, third = counts
    quadratic = (third - 2 * second + first) / 2
    linear = second - first - 3 * quadratic
    return first - linear - quadratic, linear, quadratic


def _lengths(config: TrainConfig, manifest: Manifest) -> list[int]:
    """The numbers of text tokens that a batch can have. If there are more than two, any three."""
    if "text" not in config.model.modalities:
        return [TEXT_MULTIPLE]
    [longest] = manifest.columns["text"].shape
    shorter = range(TEXT_MULTIPLE, longest, TEXT_MULTIPLE)
    if len(shorter) < 2:
        return [*shorter, longest]
    return [k * TEXT_MULTIPLE for k in (1, 2, 3)]


def count_flops(
    model: nn.Module, values: dict[str, Tensor], config: TrainConfig, batch: dict[str, Any]
) -> int:
    """FLOPs of forward and backward of a batch on the meta device."""
    with _decided_values(), FlopCounterMode(display=False) as counter:
        inputs = (batch["inputs"], batch["lengths"], batch["present"])
        output = torch.func.functional_call(model, values, inputs)
        present = output["present"]
        terms = total_loss(output, batch["labels"], present, config.loss, config.tasks)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def _meta_values(model: nn.Module) -> dict[str, Tensor]:
    """Stand-ins of all parameters and buffers."""
    values = {name: torch.empty_like(value, device="meta") for name, value in model.named_buffers()}
    for name, value in model.named_parameters():
        shape = getattr(value, "ds_shape", value.shape)  # ZeRO stage 3 partitions parameters
        stand_in = torch.empty(shape, dtype=value.dtype, device="meta")
        values[name] = stand_in.requires_grad_(value.requires_grad)
    return values


def _meta_batch(
    config: TrainConfig, manifest: Manifest, micro_batch_size: int, num_tokens: int
) -> dict[str, Any]:
    """A batch of the packed data set, as shapes. Its texts have `num_tokens` tokens."""
    B, device = micro_batch_size, "meta"
    inputs: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    for name in config.model.modalities:
        shape = manifest.columns[name].shape
        if name == "text":
            shape = (num_tokens,)
            inputs[name] = torch.empty(B, *shape, dtype=torch.int64, device=device)
        else:
            shape = shape[-3:] if name == "image" else shape
            shape = (*shape, 2) if name == "numbers" else shape
            inputs[name] = torch.empty(B, *shape, device=device)
        if f"{name}_length" in manifest.columns:
            lengths[name] = torch.empty(B, dtype=torch.int64, device=device)
        if name == "text" and TEXT_SECOND in manifest.columns:
            lengths[TEXT_SECOND] = torch.empty(B, dtype=torch.int64, device=device)
    labels = {}
    for task, classes in _classes(config, manifest).items():
        labels[task] = torch.empty(B, dtype=torch.int64, device=device)
        if manifest.labels[task].kind in ("multi_label", "regression"):
            labels[task] = torch.empty(B, classes, device=device)
    present = torch.ones(B, len(config.model.modalities), dtype=torch.bool, device=device)
    return {"inputs": inputs, "lengths": lengths, "labels": labels, "present": present}


def _replace_by_features(
    batch: dict[str, Any], name: str, shape: tuple[int, int], num_tokens: int
) -> None:
    """Put the features of a frozen encoder in the place of a modality's input."""
    number, (tokens, width) = len(batch["present"]), shape
    if name == "text":
        tokens = num_tokens
        batch["lengths"].pop(TEXT_SECOND, None)
    batch["lengths"].pop(name, None)
    batch["inputs"][name] = torch.empty(number, tokens, width, device="meta")
    mask_BT = torch.empty(number, tokens, dtype=torch.bool, device="meta")
    batch["lengths"][mask_key(name)] = mask_BT


def _classes(config: TrainConfig, manifest: Manifest) -> dict[str, int]:
    return {task.name: len(manifest.labels[task.name].classes) for task in config.tasks}


class _NoValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answer False where code asks for a value, such as whether all tokens of a batch are valid."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return False
        return function(*arguments, **(keywords or {}))


@contextmanager
def _decided_values() -> Iterator[None]:
    with _NoValues():  # type: ignore[no-untyped-call]
        yield
