"""Evaluation on a whole split: every sample exactly once, scored from all logits together.

N samples, M modalities, C classes, D width.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.config.metrics import subsets
from furnace_hpc.config.model_config import TaskConfig
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.data.loading.prefetch import Prefetched, Request
from furnace_hpc.engine.deepspeed_engine import Engine
from furnace_hpc.engine.distributed import Processes
from furnace_hpc.model.consistency import consistency_block
from furnace_hpc.model.scores import (
    mean_prediction,
    multi_label_scores,
    single_label_scores,
    tune_threshold,
)
from furnace_hpc.runs.folder import RunFolder

GALLERY = 1000  # pairs that retrieval chooses among: its numbers mean nothing without their count


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split, and the logits they come from."""

    split: str
    scores: dict[str, float]
    """<split>/<task>/<metric>, and what config/metrics.py says of names with @"""
    logits: dict[str, Tensor]
    """Task -> [N, C] float32 on the CPU."""
    thresholds: dict[str, float]
    """Multi-label task -> the probability above which it says yes; tuned on this split where none was given."""


def evaluate(
    engine: Engine,
    reader: BatchReader,
    split: str,
    tasks: tuple[TaskConfig, ...],
    batch_size: int,
    processes: Processes,
    heartbeat: Callable[[str], None] = lambda where: None,
    thresholds: Mapping[str, float] | None = None,
    with_subsets: bool = False,
    all_frames: bool = False,
) -> Evaluation:
    """Collective. Score a split; every rank gets the same answer.

    Args:
        engine: the trained network.
        reader: the split's batches.
        split: its name.
        tasks: what is scored.
        batch_size: samples per forward pass and rank.
        processes: the ranks.
        heartbeat: is told of every batch.
        thresholds: of the validation split, for any other one; none: this is the validation split, and tunes its own.
        with_subsets: also each subset of the modalities, and their consistency.
        all_frames: score the mean prediction over a clip's frames; else that of the middle one.
    """
    names = engine.module.modalities
    parts = subsets(tuple(range(len(names)))) if with_subsets else []
    frames = tuple(range(reader.image_frames)) if all_frames and reader.image_frames else (None,)
    seen = _whole_split(
        engine, reader, split, tasks, batch_size, processes, heartbeat, parts, frames
    )
    tuned = {
        task.name: thresholds[task.name]
        if thresholds is not None
        else tune_threshold(seen[f"logits.{task.name}"], seen[f"label.{task.name}"])
        for task in tasks
        if task.kind == "multi_label"
    }
    scores: dict[str, float] = {}
    for task in tasks:
        logits, labels, threshold = (
            seen[f"logits.{task.name}"],
            seen[f"label.{task.name}"],
            tuned.get(task.name, 0.5),
        )
        for name, value in _scores(task, logits, labels, threshold).items():
            scores[f"{split}/{task.name}/{name}"] = value
        for number, part in enumerate(parts):
            at, rows = "+".join(names[m] for m in part), seen["present"][:, list(part)].any(1)
            if not rows.any():
                continue
            part_logits = seen[f"{number}.{task.name}"][rows]
            for name, value in _scores(task, part_logits, labels[rows], threshold).items():
                scores[f"{split}/{task.name}/{name}@{at}"] = value
            scores[f"{split}/{task.name}/samples@{at}"] = int(rows.sum())
    if with_subsets:
        scores |= {f"{split}/{name}": value for name, value in _consistency(seen, names).items()}
    return Evaluation(
        split, scores, {task.name: seen[f"logits.{task.name}"] for task in tasks}, tuned
    )


def _whole_split(
    engine: Engine,
    reader: BatchReader,
    split: str,
    tasks: tuple[TaskConfig, ...],
    batch_size: int,
    processes: Processes,
    heartbeat: Callable[[str], None],
    parts: list[tuple[int, ...]],
    frames: tuple[int | None, ...],
) -> dict[str, Tensor]:
    """Collective. Logits, labels, presence and embeddings of all samples, in the split's order, on the CPU."""
    whole: dict[str, Tensor] = {}
    engine.eval()
    shares = _shares(reader.num_samples, batch_size, processes)
    requests = [
        Request(indices, None if frame is None else np.full_like(indices, frame))
        for indices, _ in shares
        for frame in frames
    ]
    with torch.no_grad(), Prefetched(reader, requests) as batches:
        for number, (indices, count) in enumerate(shares):
            shown = []
            for _ in frames:
                heartbeat(f"evaluation on {split}, batch {number}")
                shown.append(_seen(engine, next(batches), tasks, parts))
            rows = torch.from_numpy(indices[:count]).to(processes.device)
            for name, value in _over_frames(shown, tasks).items():
                if name not in whole:
                    whole[name] = value.new_zeros(reader.num_samples, *value.shape[1:])
                whole[name][rows] = value[:count]
    engine.train()
    # Rows of other ranks are zeros here, so a sum is a gathering, and exact.
    return {name: processes.all_reduce_sum(tensor).cpu() for name, tensor in whole.items()}


def _seen(
    engine: Engine, batch: Batch, tasks: tuple[TaskConfig, ...], parts: list[tuple[int, ...]]
) -> dict[str, Tensor]:
    """What one forward pass tells of its samples."""
    output = engine(batch.inputs, batch.lengths, batch.present_BM, parts)
    values: dict[str, Tensor] = {}
    for task in (task.name for task in tasks):
        values[f"logits.{task}"] = output["logits"][task].float()
        values[f"label.{task}"] = batch.labels[task]
        values |= {
            f"{k}.{task}": logits[task].float() for k, logits in enumerate(output["subsets"])
        }
    if parts:
        values["present"] = batch.present_BM.long()
        values["embeddings"] = output.get(
            "projections", output.get("expanded", output["features"])
        ).float()
    return values


def _over_frames(
    shown: list[dict[str, Tensor]], tasks: tuple[TaskConfig, ...]
) -> dict[str, Tensor]:
    """What all frames tell together: the logits of mean probabilities, and mean embeddings; the rest is equal."""
    values = shown[0]
    if len(shown) == 1:
        return values
    kinds, made = {task.name: task.kind for task in tasks}, {}
    for name, value in values.items():
        what, _, task = name.partition(".")
        if what in ("label", "present"):
            made[name] = value
        elif what == "embeddings":
            made[name] = torch.stack([frame[name] for frame in shown]).mean(0)
        else:
            made[name] = mean_prediction(torch.stack([frame[name] for frame in shown]), kinds[task])
    return made


def _scores(
    task: TaskConfig, logits_NC: Tensor, labels: Tensor, threshold: float
) -> dict[str, float]:
    match task.kind:
        case "single_label":
            return single_label_scores(logits_NC, labels)
        case "multi_label":
            return multi_label_scores(logits_NC, labels, threshold)


def _consistency(seen: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, float]:
    """The consistency block of each two modalities, over the first samples that have both."""
    scores: dict[str, float] = {}
    for m, n in itertools.combinations(range(len(names)), 2):
        rows = (seen["present"][:, [m, n]].all(1)).nonzero().flatten()[:GALLERY]
        if len(rows) < 4:
            continue
        block = consistency_block(seen["embeddings"][rows, m], seen["embeddings"][rows, n])
        scores |= {
            f"consistency/{name}@{names[m]}+{names[n]}": value for name, value in block.items()
        }
    return scores


def write_predictions(folder: RunFolder, reader: BatchReader, evaluation: Evaluation) -> None:
    """Write sample ids, logits, labels and presence, for tests and thresholds without running again."""
    path = folder.predictions(evaluation.split)
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {
        f"logits.{task}": logits.numpy() for task, logits in evaluation.logits.items()
    }
    arrays |= {f"label.{task}": reader.column(f"label.{task}") for task in evaluation.logits}
    arrays |= {name: reader.column(name) for name in ("sample_id", "present")}
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        np.savez(file, **arrays)
    aside.replace(path)


def _shares(
    num_samples: int, batch_size: int, processes: Processes
) -> list[tuple[NDArray[np.int64], int]]:
    """This rank's batches and how many of each are its own.

    All ranks make equally many forward passes (ZeRO stage 3 gathers parameters in each); a short share is filled up
    with sample 0, whose rows are not counted.
    """
    mine = np.arange(processes.rank, num_samples, processes.world_size)
    longest = -(-num_samples // processes.world_size)
    shares = []
    for first in range(0, longest, batch_size):
        own = mine[first : first + batch_size]
        size = min(batch_size, longest - first)
        shares.append((np.concatenate([own, np.zeros(size - len(own), dtype=np.int64)]), len(own)))
    return shares
