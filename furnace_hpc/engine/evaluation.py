"""Evaluation of a whole split: every sample exactly once, scored from all logits together.

N samples, M modalities, C classes, D width.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.config.metrics import subsets
from furnace_hpc.config.sections.tasks import TaskConfig
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.data.loading.prefetch import BatchPrefetcher, BatchRequest
from furnace_hpc.data.loading.targets import TargetScale
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.deepspeed_engine import Engine
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.weights.average import averaged_weights
from furnace_hpc.host.durable_files import replaced_file
from furnace_hpc.model.consistency import consistency_block
from furnace_hpc.model.own_code.functions import own_metrics
from furnace_hpc.model.scores import (
    mean_prediction,
    multi_label_scores,
    single_label_scores,
    tune_threshold,
)
from furnace_hpc.model.target_scores import ordinal_scores, regression_scores, scores_of_targets
from furnace_hpc.runs.folder import RunFolder

# Retrieval chooses among this many pairs. Its scores depend on the number, so it is fixed.
GALLERY = 1000

Subset = tuple[int, ...]
"""Modalities, by their position in the network."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split, and the logits they were computed from."""

    split: str
    scores: dict[str, float]
    """<split>/<task>/<metric>. config/metrics.py explains the names with @."""
    logits: dict[str, Tensor]
    """Task -> [N, C] float32 on the CPU. Log-probabilities of an ordinal task. Of a regression the
    numbers in original units, float64."""
    thresholds: dict[str, float]
    """Multi-label task -> the probability above which a class counts as predicted."""


@dataclass(frozen=True)
class Scoring:
    """How the outputs of a task are scored."""

    task: TaskConfig
    threshold: float
    """Of a multi-label task."""
    scale: TargetScale | None = None
    """Of a regression."""
    extra: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The user's own metrics: import path -> parameters."""

    def scores(self, logits_NC: Tensor, labels: Tensor) -> dict[str, float]:
        """Compute all metrics of the task."""
        return self._built_in(logits_NC, labels) | own_metrics(self.extra, logits_NC, labels)

    def _built_in(self, logits_NC: Tensor, labels: Tensor) -> dict[str, float]:
        match self.task.kind:
            case "single_label":
                return single_label_scores(logits_NC, labels)
            case "multi_label":
                return multi_label_scores(logits_NC, labels, self.threshold)
            case "ordinal":
                return ordinal_scores(logits_NC, labels)
            case "regression":
                assert self.scale is not None
                error_NT = logits_NC.double() - self.scale.standardised(labels)
                predicted_NT = self.scale.original(logits_NC)
                found = regression_scores(predicted_NT, labels)
                found |= scores_of_targets(predicted_NT, labels, self.scale.names)
                return found | {"loss": error_NT.square().mean().item()}


def evaluate(
    context: RunContext,
    split: str,
    thresholds: Mapping[str, float] | None = None,
    with_subsets: bool = False,
) -> Evaluation:
    """Collective. Score a split. Every rank gets the same answer.

    Args:
        context: the run.
        split: name of the split.
        thresholds: those of the validation split. None tunes them on this split.
        with_subsets: also score each subset of the modalities, and their consistency.

    Raises:
        Stopped: a rank has received a stop signal.
        FloatingPointError: on all ranks, if a logit is not finite.
    """
    context.heartbeat_or_stop(f"evaluation on {split}")
    modalities: tuple[str, ...] = context.engine.module.modalities
    modality_subsets: list[Subset] = []
    if with_subsets:
        modality_subsets = subsets(tuple(range(len(modalities))))
    with averaged_weights(context.engine, context.config):
        outputs = _forward_split(context, split, modality_subsets)

    tasks = context.config.tasks
    for task in tasks:
        _check_finite(outputs[f"logits.{task.name}"], f"{split}/{task.name}")
    if thresholds is None:
        thresholds = _tune_thresholds(tasks, outputs)
    scales = context.readers[split].target_scales
    for name in scales:  # as they are stored, not standardised and rounded
        outputs[f"label.{name}"] = torch.from_numpy(
            np.array(context.readers[split].column(f"label.{name}"))
        )
    scores: dict[str, float] = {}
    for task in tasks:
        scoring = Scoring(
            task,
            thresholds.get(task.name, 0.5),
            scales.get(task.name),
            context.config.evaluation.extra,
        )
        scores |= _task_scores(scoring, split, outputs, modality_subsets, modalities)
    if with_subsets:
        scores |= _consistency(outputs, modalities)
    return Evaluation(
        split=split,
        scores={f"{split}/{name}": value for name, value in scores.items()},
        logits={
            task.name: _answers(outputs[f"logits.{task.name}"], scales.get(task.name))
            for task in tasks
        },
        thresholds=dict(thresholds),
    )


def _answers(logits_NC: Tensor, scale: TargetScale | None) -> Tensor:
    return scale.original(logits_NC) if scale else logits_NC


def _check_finite(logits_NC: Tensor, name: str) -> None:
    """Raise FloatingPointError if a logit is not finite. An argmax would still give an accuracy."""
    num_samples = int((~logits_NC.isfinite()).any(1).sum())
    if num_samples:
        raise FloatingPointError(
            f"{name}: the logits of {num_samples:,} of {len(logits_NC):,} samples are not finite. "
            f"Lower optimizer.lr or check the data."
        )


def _tune_thresholds(tasks: tuple[TaskConfig, ...], outputs: dict[str, Tensor]) -> dict[str, float]:
    return {
        task.name: tune_threshold(outputs[f"logits.{task.name}"], outputs[f"label.{task.name}"])
        for task in tasks
        if task.kind == "multi_label"
    }


def _task_scores(
    scoring: Scoring,
    split: str,
    outputs: dict[str, Tensor],
    modality_subsets: list[Subset],
    modalities: tuple[str, ...],
) -> dict[str, float]:
    """Scores of one task with all modalities, and with each given subset of them."""
    task = scoring.task
    labels = outputs[f"label.{task.name}"]
    found = scoring.scores(outputs[f"logits.{task.name}"], labels)
    scores = {f"{task.name}/{name}": value for name, value in found.items()}
    for number, subset in enumerate(modality_subsets):
        label = "+".join(modalities[m] for m in subset)
        rows = outputs["present"][:, list(subset)].any(1)
        if not rows.any():
            continue
        logits = outputs[f"{number}.{task.name}"][rows]
        _check_finite(logits, f"{split}/{task.name}@{label}")
        for name, value in scoring.scores(logits, labels[rows]).items():
            scores[f"{task.name}/{name}@{label}"] = value
        scores[f"{task.name}/samples@{label}"] = int(rows.sum())
    return scores


def _forward_split(
    context: RunContext, split: str, modality_subsets: list[Subset]
) -> dict[str, Tensor]:
    """Collective. Logits, labels, presence and embeddings of all samples, on the CPU.

    Rows are in the split's order.
    """
    engine, reader, processes = context.engine, context.readers[split], context.processes
    tasks, frames = context.config.tasks, _frames(context, reader)
    shares = rank_shares(reader.num_samples, context.config.evaluation.batch_size, processes)
    requests = [_request(rows, frame) for (rows, _), frame in itertools.product(shares, frames)]
    whole: dict[str, Tensor] = {}
    engine.eval()
    with torch.no_grad(), BatchPrefetcher(reader, requests) as batches:
        for number, (indices, count) in enumerate(shares):
            by_frame = []
            for _ in frames:
                context.heartbeat_or_stop(f"evaluation on {split}, batch {number}")
                by_frame.append(_forward_batch(engine, next(batches), tasks, modality_subsets))
            rows = torch.from_numpy(indices[:count]).to(processes.device)
            for name, value in _merge_frames(by_frame, tasks).items():
                if name not in whole:
                    whole[name] = value.new_zeros(reader.num_samples, *value.shape[1:])
                whole[name][rows] = value[:count]
    engine.train()
    # The rows of other ranks are zero here, so the sum over ranks gathers all rows exactly.
    return {name: processes.all_reduce_sum(tensor).cpu() for name, tensor in whole.items()}


def _frames(context: RunContext, reader: BatchReader) -> tuple[int | None, ...]:
    """Frames of a clip to score. None: the reader's default, which is the middle one."""
    if context.config.evaluation.frames == "mean" and reader.image_frames:
        return tuple(range(reader.image_frames))
    return (None,)


def _request(rows: NDArray[np.int64], frame: int | None) -> BatchRequest:
    if frame is None:
        return BatchRequest(rows)
    return BatchRequest(rows, np.full_like(rows, frame))


def _forward_batch(
    engine: Engine, batch: Batch, tasks: tuple[TaskConfig, ...], modality_subsets: list[Subset]
) -> dict[str, Tensor]:
    """One forward pass. Keys: logits.<task>, label.<task>, <number of subset>.<task>, and more."""
    output = engine(batch.inputs, batch.lengths, batch.present_BM, modality_subsets, batch.complete)
    values: dict[str, Tensor] = {}
    for task in tasks:
        values[f"logits.{task.name}"] = output["logits"][task.name].float()
        values[f"label.{task.name}"] = batch.labels[task.name]
        for number, logits in enumerate(output["subsets"]):
            values[f"{number}.{task.name}"] = logits[task.name].float()
    if modality_subsets:
        values["present"] = batch.present_BM.long()
        embeddings = output.get("projections", output.get("expanded", output["features"]))
        values["embeddings"] = embeddings.float()
    return values


def _merge_frames(
    by_frame: list[dict[str, Tensor]], tasks: tuple[TaskConfig, ...]
) -> dict[str, Tensor]:
    """Logits of the mean probability over frames, and mean embeddings.

    Labels and presence are the same for all frames.
    """
    first = by_frame[0]
    if len(by_frame) == 1:
        return first
    kinds = {task.name: task.kind for task in tasks}
    merged: dict[str, Tensor] = {}
    for name, value in first.items():
        content, _, task = name.partition(".")
        if content in ("label", "present"):
            merged[name] = value
            continue
        stacked = torch.stack([values[name] for values in by_frame])
        if content == "embeddings":
            merged[name] = stacked.mean(0)
        else:
            merged[name] = mean_prediction(stacked, kinds[task])
    return merged


def _consistency(outputs: dict[str, Tensor], modalities: tuple[str, ...]) -> dict[str, float]:
    """Consistency metrics of each pair of modalities, over the first samples that have both."""
    scores: dict[str, float] = {}
    for m, n in itertools.combinations(range(len(modalities)), 2):
        rows = (outputs["present"][:, [m, n]].all(1)).nonzero().flatten()[:GALLERY]
        if len(rows) < 4:
            continue
        block = consistency_block(outputs["embeddings"][rows, m], outputs["embeddings"][rows, n])
        for name, value in block.items():
            scores[f"consistency/{name}@{modalities[m]}+{modalities[n]}"] = value
    return scores


def write_predictions(folder: RunFolder, reader: BatchReader, evaluation: Evaluation) -> None:
    """Write sample ids, logits, labels and presence, so that tests need no second evaluation."""
    path = folder.predictions(evaluation.split)
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for task, logits in evaluation.logits.items():
        arrays[f"logits.{task}"] = logits.numpy()
    for task in evaluation.logits:
        arrays[f"label.{task}"] = reader.column(f"label.{task}")
    for name in ("sample_id", "present"):
        arrays[name] = reader.column(name)
    with replaced_file(path, durable=False) as file:
        np.savez(file, **arrays)


def rank_shares(
    num_samples: int, batch_size: int, processes: Processes
) -> list[tuple[NDArray[np.int64], int]]:
    """This rank's batches: row numbers, and how many of them count.

    All ranks make the same number of forward passes, because ZeRO stage 3 gathers parameters in
    each. A short batch is filled with sample 0, and those rows do not count.
    """
    mine = np.arange(processes.rank, num_samples, processes.world_size)
    longest = -(-num_samples // processes.world_size)
    shares = []
    for first in range(0, longest, batch_size):
        own = mine[first : first + batch_size]
        size = min(batch_size, longest - first)
        padding = np.zeros(size - len(own), dtype=np.int64)
        shares.append((np.concatenate([own, padding]), len(own)))
    return shares
