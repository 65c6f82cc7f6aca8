"""Columns to batches: gathered by index from the memory maps, moved once, standardised on the device.

B batch, M modalities, C channels or coefficients, H height, W width, T tokens or frames.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.data.columns import Columns


@dataclass(frozen=True)
class Batch:
    """What one forward pass and its loss need, on the device."""

    inputs: dict[str, Tensor]
    """text [B, T] int64; image [B, C, H, W] and audio [B, C, T] float32, standardised."""
    lengths: dict[str, Tensor]
    """Valid tokens or frames of text and audio, [B] int64."""
    present_BM: Tensor
    """Whether each sample has each modality, bool, in the order of `modalities`."""
    labels: dict[str, Tensor]
    """Task -> class index [B] int64."""


class BatchReader:
    """Reads batches of one split."""

    def __init__(
        self,
        columns: Columns,
        split: str,
        modalities: tuple[str, ...],
        tasks: tuple[str, ...],
        device: torch.device,
    ) -> None:
        self._arrays, self._device = columns.split(split), device
        self._modalities, self._tasks = modalities, tasks
        self._bits = [columns.manifest.modalities.index(modality) for modality in modalities]
        self._scale = {
            name: (_column(statistics.mean, device), _column(statistics.std, device))
            for name, statistics in columns.manifest.statistics.items()
        }
        self.num_samples: int = columns.manifest.splits[split]  # type: ignore[index]

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The batch of these samples, in this order."""
        inputs, lengths = {}, {}
        for modality in self._modalities:
            inputs[modality] = self._standardised(modality, self._take(modality, indices))
            if f"{modality}_length" in self._arrays:
                lengths[modality] = self._take(f"{modality}_length", indices).long()
        return Batch(
            inputs=inputs,
            lengths=lengths,
            present_BM=self._take("present", indices)[:, self._bits].bool(),
            labels={task: self._take(f"label.{task}", indices).long() for task in self._tasks},
        )

    def column(self, name: str) -> NDArray[np.generic]:
        """A whole column, for predictions."""
        return np.asarray(self._arrays[name])

    def _take(self, column: str, indices: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._arrays[column][indices]).to(self._device, non_blocking=True)

    def _standardised(self, modality: str, values: Tensor) -> Tensor:
        if modality == "text":
            return values.long()
        mean, std = self._scale[modality]
        shape = (1, -1) + (1,) * (values.dim() - 2)
        return (values.float() - mean.view(shape)) / std.view(shape)


def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
