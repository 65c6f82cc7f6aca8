"""Columns to batches: gathered by index from the memory maps, moved once, standardised on the device.

B batch, M modalities, C channels, coefficients or classes, H height, W width, T tokens or frames of sound, N samples,
F frames of a clip.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.data.columns import Array, Columns

TEXT_MULTIPLE = 8  # tokens; what matrix units like

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class HostBatch:
    """Samples as they are stored, in the host's memory: pinned where the device is a GPU."""

    rows: Rows
    columns: dict[str, Tensor]
    buffers: dict[str, Tensor]
    """What the columns are views of."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass and its loss need, on the device."""

    rows: Rows
    """Which samples: rows of the split's columns, so of its sample ids too."""
    inputs: dict[str, Tensor]
    """text [B, T] int64; image [B, C, H, W] and audio [B, C, T] float32, standardised."""
    lengths: dict[str, Tensor]
    """Valid tokens or frames of text and audio, [B] int64."""
    present_BM: Tensor
    """Whether each sample has each modality, bool, in the order of `modalities`."""
    labels: dict[str, Tensor]
    """Task -> class index [B] int64, or where a sample may have several classes [B, C] float32 of 0 and 1."""


class BatchReader:
    """Reads batches of one split: `gather` on the host, in whatever thread, then `to_device` where they are used."""

    def __init__(
        self,
        columns: Columns,
        split: str,
        modalities: tuple[str, ...],
        tasks: tuple[str, ...],
        device: torch.device,
    ) -> None:
        manifest = columns.manifest
        self.device = device
        self.num_samples: int = manifest.splits[split]  # type: ignore[index]
        self.image_frames = manifest.image_frames if "image" in modalities else None
        # Plain arrays over the maps: numpy's memmap class costs a Python call for every view.
        self._arrays = {name: np.asarray(array) for name, array in columns.split(split).items()}
        self._modalities = modalities
        self._dtypes = {
            task: torch.float32 if manifest.labels[task].kind == "multi_label" else torch.int64
            for task in tasks
        }
        self._bits = [manifest.modalities.index(modality) for modality in modalities]
        self._scale = {
            name: (_column(statistics.mean, device), _column(statistics.std, device))
            for name, statistics in manifest.statistics.items()
        }
        wanted = [*modalities, *(f"{modality}_length" for modality in modalities), "present"]
        self._sources = {name: self._arrays[name] for name in wanted if name in self._arrays}
        self._sources |= {f"label.{task}": self._arrays[f"label.{task}"] for task in tasks}
        if self.image_frames:  # a frame is a row then
            clips = self._arrays["image"]
            self._sources["image"] = clips.reshape(-1, *clips.shape[2:])
        self._spare: deque[dict[str, Tensor]] = deque()

    def read(self, rows: Rows, frames: Rows | None = None) -> Batch:
        """The batch of these samples, in this order.

        Args:
            rows: samples [B].
            frames: which frame of its clip each sample shows, [B]; none: the middle one.
        """
        return self.to_device(self.gather(rows, frames))

    def gather(self, rows: Rows, frames: Rows | None = None) -> HostBatch:
        """Copy these samples from the maps; waits for the disk where they are not in memory.

        Raises:
            IndexError: there is no such sample.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_samples:
            raise IndexError(
                f"samples {rows.min()} to {rows.max()} asked for, 0 to {self.num_samples - 1} are there"
            )
        buffers = self._spare.pop() if self._spare else {}
        columns = {}
        for name, source in self._sources.items():
            of_column = rows
            if name == "image" and self.image_frames:
                of_column = rows * self.image_frames + (
                    self.image_frames // 2 if frames is None else frames
                )
            columns[name] = self._take(name, source, of_column, buffers)
        return HostBatch(rows, columns, buffers)

    def to_device(self, host: HostBatch) -> Batch:
        """Move and standardise; the host batch is used up, its memory is taken for a later one."""
        moved = {
            name: column.to(self.device, non_blocking=True)
            for name, column in cut_text(host.columns).items()
        }
        batch = Batch(
            rows=host.rows,
            inputs={
                modality: self._standardised(modality, moved[modality])
                for modality in self._modalities
            },
            lengths={
                modality: moved[f"{modality}_length"].to(torch.int64, copy=True)
                for modality in self._modalities
                if f"{modality}_length" in moved
            },
            present_BM=moved["present"][:, self._bits].bool(),
            labels={
                task: moved[f"label.{task}"].to(dtype, copy=True)
                for task, dtype in self._dtypes.items()
            },
        )
        # a GPU may still be reading; torch keeps its pinned memory for later itself
        if self.device.type == "cpu":
            self.give_back(host)
        return batch

    def give_back(self, host: HostBatch) -> None:
        """Take the memory of a batch that nobody needs any more for a later one."""
        self._spare.append(host.buffers)

    def column(self, name: str) -> NDArray[np.generic]:
        """A whole column, for predictions."""
        return self._arrays[name]

    def _take(self, name: str, source: Array, rows: Rows, buffers: dict[str, Tensor]) -> Tensor:
        """Rows of a source; new memory costs as much as the copying, so buffers are used again."""
        buffer = buffers.get(name)
        if buffer is None or len(buffer) < len(rows):
            dtype = torch.from_numpy(np.empty(0, source.dtype)).dtype
            pinned = self.device.type == "cuda"
            buffer = buffers[name] = torch.empty(
                (len(rows), *source.shape[1:]), dtype=dtype, pin_memory=pinned
            )
        taken = buffer[: len(rows)]
        # the default mode copies everything twice
        np.take(source, rows, axis=0, out=taken.numpy(), mode="clip")
        return taken

    def _standardised(self, modality: str, values: Tensor) -> Tensor:
        if modality == "text":
            return values.to(torch.int64, copy=True)
        return standardised(values, *self._scale[modality])


def standardised(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Stored values [B, C, ...] less the mean [C], over the deviation [C] of the train split, as float32."""
    shape = (1, -1) + (1,) * (values.dim() - 2)
    return (values.float() - mean.view(shape)) / std.view(shape)


def cut_text(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the tokens that are padding in every sample, up to a multiple of 8."""
    if "text" not in columns or "text_length" not in columns or not len(columns["text"]):
        return columns
    longest = max(1, int(columns["text_length"].max()))
    return columns | {"text": columns["text"][:, : -(-longest // TEXT_MULTIPLE) * TEXT_MULTIPLE]}


def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
