"""Evaluation on a whole split: every sample exactly once, scored from all logits together.

N samples, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.data.loader import BatchReader
from furnace_hpc.data.prefetch import Prefetched, Request
from furnace_hpc.engine.processes import Processes
from furnace_hpc.engine.zero import Engine
from furnace_hpc.model.scores import single_label_scores
from furnace_hpc.runs.folder import RunFolder


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split, and the logits they come from."""

    split: str
    scores: dict[str, float]
    """<split>/<task>/<metric>"""
    logits: dict[str, Tensor]
    """Task -> [N, C] float32 on the CPU."""


def evaluate(
    engine: Engine,
    reader: BatchReader,
    split: str,
    num_classes: dict[str, int],
    batch_size: int,
    processes: Processes,
    moved: Callable[[str], None] = lambda where: None,
) -> Evaluation:
    """Collective. Score a split; every rank gets the same answer. `moved` is told of every batch."""
    N, device = reader.num_samples, processes.device
    whole = {task: torch.zeros(N, count, device=device) for task, count in num_classes.items()}
    labels = {task: torch.zeros(N, dtype=torch.int64, device=device) for task in num_classes}
    engine.eval()
    shares = _shares(N, batch_size, processes)
    with torch.no_grad(), Prefetched(reader, [Request(indices) for indices, _ in shares]) as batches:
        for number, (_, count) in enumerate(shares):
            moved(f"evaluation on {split}, batch {number}")
            batch = next(batches)
            output = engine(batch.inputs, batch.lengths, batch.present_BM)
            rows = torch.from_numpy(batch.rows[:count]).to(device)
            for task in num_classes:
                whole[task][rows] = output["logits"][task][:count].float()
                labels[task][rows] = batch.labels[task][:count]
    engine.train()
    scores: dict[str, float] = {}
    for task in num_classes:
        # Rows of other ranks are zeros here, so a sum is a gathering, and exact.
        logits_NC, label_N = processes.all_reduce_sum(whole[task]).cpu(), processes.all_reduce_sum(labels[task]).cpu()
        whole[task] = logits_NC
        scores |= {f"{split}/{task}/{name}": value for name, value in single_label_scores(logits_NC, label_N).items()}
    return Evaluation(split, scores, whole)


def write_predictions(folder: RunFolder, reader: BatchReader, evaluation: Evaluation) -> None:
    """Write sample ids, logits, labels and presence, for tests and thresholds without running again."""
    path = folder.predictions(evaluation.split)
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {f"logits.{task}": logits.numpy() for task, logits in evaluation.logits.items()}
    arrays |= {f"label.{task}": reader.column(f"label.{task}") for task in evaluation.logits}
    arrays |= {name: reader.column(name) for name in ("sample_id", "present")}
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        np.savez(file, **arrays)
    aside.replace(path)


def _shares(num_samples: int, batch_size: int, processes: Processes) -> list[tuple[NDArray[np.int64], int]]:
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
