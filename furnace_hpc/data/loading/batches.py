"""Turn columns into batches: gather rows from memory maps, copy to the device, standardise there.

Shapes: B batch, M modalities, C channels, coefficients or classes, H height, W width,
T tokens or frames of sound, N samples, F frames of a clip.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.config.manifest import TEXT_SECOND, waveform_of
from furnace_hpc.data.columns import Array, Columns
from furnace_hpc.data.jpeg_images import JpegColumn
from furnace_hpc.data.loading.ahead import FileRows, rows_on_disk
from furnace_hpc.data.loading.augment import Augmenter, DrawnSamples
from furnace_hpc.data.loading.numbers import prepared_numbers
from furnace_hpc.data.loading.targets import balanced_weights, target_scales
from furnace_hpc.data.loading.waveforms import prepared_waveforms, read_waveforms

TEXT_MULTIPLE = 8  # tokens: matrix units are fastest at multiples of 8

Rows = NDArray[np.int64]
Source = Array | JpegColumn


@dataclass(frozen=True)
class HostBatch:
    """Samples as stored, in host memory. The memory is pinned if the device is a GPU."""

    rows: Rows
    columns: dict[str, Tensor]
    buffers: dict[str, Tensor]
    """The memory of the columns, which are views of it."""
    complete: frozenset[str] = frozenset()
    """Modalities that all samples have, with valid values at all positions."""


class Mix(NamedTuple):
    """Mixup of a batch: weight x sample + (1 - weight) x partner."""

    partner_B: Tensor
    """Place of each sample's partner in the batch, int64."""
    weight_B: Tensor
    """Weight of the sample itself, float32."""


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass and its loss, on the device."""

    rows: Rows
    """Row numbers of the samples in the split's columns."""
    inputs: dict[str, Tensor]
    """text [B, T] int64; image [B, C, H, W] and audio [B, C, T] float32, standardised. Waveforms
    are [B, T]. numbers [B, N, 2] float32: standardised, and whether each is known."""
    lengths: dict[str, Tensor]
    """Valid tokens, frames or samples of text and audio, [B] int64. Of text pairs also
    `text_second`: the place of the second text's first token."""
    present_BM: Tensor
    """Whether each sample has each modality, bool, in the order of `modalities`."""
    labels: dict[str, Tensor]
    """Task -> class index [B] int64. With several classes per sample: [B, C] float32 of 0 and 1.
    Regression: standardised [B, targets] float32."""
    complete: frozenset[str] = frozenset()
    """Modalities that all samples have, with valid values at all positions. The host knows it."""
    class_weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Task -> weight of each class in the training loss [C]."""
    mix: Mix | None = None
    """How mixup mixes the samples. None: not at all."""


class BatchReader:
    """Reads batches of one split: `gather` on the host in any thread, then `to_device`."""

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
        self._waveform = waveform_of(manifest)
        self.image_frames = manifest.image_frames if "image" in modalities else None
        # Plain arrays over the maps: numpy's memmap class adds a Python call per view.
        self._arrays: dict[str, Any] = {
            name: array if isinstance(array, JpegColumn) else np.asarray(array)
            for name, array in columns.split(split).items()
        }
        self._modalities = modalities
        self._kinds = {task: manifest.labels[task].kind for task in tasks}
        self._num_classes = {task: len(manifest.labels[task].classes) for task in tasks}
        self._scales = target_scales(manifest, tasks, device)
        self.target_scales = target_scales(manifest, tasks)
        self.class_weights: dict[str, Tensor] = {}
        self._columns_of_present = [manifest.modalities.index(name) for name in modalities]
        # a list as an index would wait for the GPU each time
        self._bits = torch.tensor(self._columns_of_present, device=device)
        self._copies = CopyStream(device)
        self._scale = {
            name: (_column(statistics.mean, device, name), _column(statistics.std, device, name))
            for name, statistics in manifest.statistics.items()
            if name in modalities
        }
        wanted = [*modalities, *(f"{modality}_length" for modality in modalities), "present"]
        wanted += [TEXT_SECOND] if "text" in modalities else []
        self._sources: dict[str, Source] = {
            name: self._arrays[name] for name in wanted if name in self._arrays
        }
        self._sources |= {f"label.{task}": self._arrays[f"label.{task}"] for task in tasks}
        if self.image_frames:  # then every frame is a row
            clips = self._arrays["image"]
            if not isinstance(clips, JpegColumn):  # it counts frames already
                self._sources["image"] = clips.reshape(-1, *clips.shape[2:])
        self.stored = rows_on_disk(self._sources)
        """The columns that the kernel can be asked for."""
        self.augmenter: Augmenter | None = None
        """Changes samples whose epochs are given to `gather`."""
        self._spare: deque[dict[str, Tensor]] = deque()

    def read(self, rows: Rows, frames: Rows | None = None) -> Batch:
        """Return the batch of these samples, in this order.

        Args:
            rows: samples [B].
            frames: the frame of each sample's clip, [B]. None is the middle frame.
        """
        return self.to_device(self.gather(rows, frames))

    def gather(
        self,
        rows: Rows,
        frames: Rows | None = None,
        epochs: Rows | None = None,
        from_file: bool = False,
    ) -> HostBatch:
        """Copy these samples from the maps. It waits for the disk if they are not in memory.

        Args:
            rows: samples [B].
            frames: the frame of each sample's clip, [B]. None is the middle frame.
            epochs: the epoch of each sample, [B]. None: samples are not augmented.
            from_file: read large samples from the files instead, which gives the same values.

        Raises:
            IndexError: there is no such sample.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_samples:
            given = f"samples {rows.min()} to {rows.max()}"
            raise IndexError(f"{given} requested, wanted 0 to {self.num_samples - 1}")
        buffers: dict[str, Tensor] = self._spare.pop() if self._spare else {}
        columns: dict[str, Tensor] = {}
        drawn = None
        if self.augmenter and epochs is not None:
            drawn = self.augmenter.draw(rows, epochs)
        for name, source in self._sources.items():
            source_rows = self.source_rows(name, rows, frames)
            stored = self.stored.get(name) if from_file else None
            columns[name] = self._take(name, source, source_rows, buffers, drawn, stored)
        if self.augmenter and drawn:
            is_cropped = isinstance(self._sources.get("image"), JpegColumn)
            values = {name: column.numpy() for name, column in columns.items()}
            self.augmenter.apply(values, drawn, is_cropped)
            columns |= self._mixed(self.augmenter.mix(drawn))
        columns = cut_text(columns)
        if self._is_pinned:
            columns = {name: self._contiguous(column) for name, column in columns.items()}
        return HostBatch(rows, columns, buffers, self._complete(columns))

    def source_rows(self, name: str, rows: Rows, frames: Rows | None) -> Rows:
        """The rows of a source: in clips every frame is one."""
        if name != "image" or not self.image_frames:
            return rows
        shown = self.image_frames // 2 if frames is None else frames
        return rows * self.image_frames + shown

    def to_device(self, host: HostBatch) -> Batch:
        """Move and standardise a batch. Its host memory may be reused afterwards."""
        moved = self._copies.to_device(host.columns)
        batch = Batch(
            rows=host.rows,
            inputs={name: self._standardised(name, moved) for name in self._modalities},
            lengths=self._lengths(moved),
            present_BM=moved["present"][:, self._bits].bool(),
            labels={task: self._labels(task, moved[f"label.{task}"]) for task in self._kinds},
            complete=host.complete,
            class_weights=self.class_weights,
            mix=_mix_of(moved),
        )
        # A GPU may still be reading, and torch reuses pinned memory itself.
        if self.device.type == "cpu":
            self.give_back(host)
        return batch

    def _lengths(self, moved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Valid tokens, frames or samples, in memory of their own."""
        return {
            modality: moved[f"{modality}_length"].to(torch.int64, copy=True)
            for modality in self._modalities
            if f"{modality}_length" in moved
        } | second_texts(moved)

    def _labels(self, task: str, stored: Tensor) -> Tensor:
        """Labels as the loss takes them, in memory of their own."""
        if task in self._scales:
            return self._scales[task].standardised(stored)
        return stored.to(_LABEL_DTYPES[self._kinds[task]], copy=True)

    def balance(self, tasks: tuple[str, ...]) -> None:
        """Give the batches class weights for these tasks, from the labels of this split."""
        for task in tasks:
            labels = np.asarray(self._arrays[f"label.{task}"])
            weights = balanced_weights(labels, self._num_classes[task])
            self.class_weights[task] = weights.to(self.device)

    def give_back(self, host: HostBatch) -> None:
        """Reuse the memory of a batch that is no longer needed."""
        self._spare.append(host.buffers)

    def column(self, name: str) -> NDArray[np.generic]:
        """Return a whole column, for predictions."""
        column: NDArray[np.generic] = self._arrays[name]
        return column

    def _mixed(self, mix: tuple[Rows, NDArray[np.float32]] | None) -> dict[str, Tensor]:
        if mix is None:
            return {}
        parts = [torch.from_numpy(part) for part in mix]
        if self._is_pinned:
            parts = [part.pin_memory() for part in parts]
        return dict(zip(_MIX, parts, strict=True))

    def _take(
        self,
        name: str,
        source: Source,
        rows: Rows,
        buffers: dict[str, Tensor],
        drawn: DrawnSamples | None,
        stored: FileRows | JpegColumn | None,
    ) -> Tensor:
        """Return rows of a source. `stored`: its file, if they are read from there."""
        if isinstance(source, JpegColumn):
            taken = self._buffer(name, source, len(rows), buffers)
            source.take(rows, taken.numpy(), drawn.boxes if drawn else None)
            return taken
        file_rows = stored if isinstance(stored, FileRows) else None
        if name == "audio" and self._waveform:
            return self._take_waveforms(source, rows, buffers, file_rows)
        taken = self._buffer(name, source, len(rows), buffers)
        if file_rows:
            file_rows.read(rows, taken.numpy())
        else:  # the default mode copies everything twice
            np.take(source, rows, axis=0, out=taken.numpy(), mode="clip")
        return taken

    def _buffer(self, name: str, source: Source, count: int, buffers: dict[str, Tensor]) -> Tensor:
        """Return memory for rows. It is reused: new memory takes as long as the copy."""
        buffer = buffers.get(name)
        if buffer is None or len(buffer) < count:
            dtype = torch.from_numpy(np.empty(0, source.dtype)).dtype
            shape = source.shape[1:]
            if isinstance(source, JpegColumn):
                shape = shape[-3:]
            buffer = buffers[name] = torch.empty(
                (count, *shape), dtype=dtype, pin_memory=self._is_pinned
            )
        return buffer[:count]

    def _take_waveforms(
        self, source: Array, rows: Rows, buffers: dict[str, Tensor], file_rows: FileRows | None
    ) -> Tensor:
        """Return sounds of a source, up to the end of the longest one."""
        lengths = self._arrays["audio_length"][rows]
        num_samples = int(lengths.max(initial=1))
        size = len(rows) * num_samples
        buffer = buffers.get("audio")
        if buffer is None or len(buffer) < size:
            buffer = buffers["audio"] = torch.empty(
                size, dtype=torch.int16, pin_memory=self._is_pinned
            )
        taken = buffer[:size].view(len(rows), num_samples)
        read_waveforms(source, file_rows, rows, lengths, taken.numpy())
        return taken

    @property
    def _is_pinned(self) -> bool:
        """Whether host memory is page-locked, so that a copy to the GPU does not wait."""
        return self.device.type == "cuda"

    def _contiguous(self, column: Tensor) -> Tensor:
        """The column in one piece. Torch copies other memory to a GPU through unpinned memory."""
        if column.is_contiguous():
            return column
        return torch.empty(column.shape, dtype=column.dtype, pin_memory=True).copy_(column)

    def _complete(self, columns: dict[str, Tensor]) -> frozenset[str]:
        """Modalities that all samples have, with valid values at all positions."""
        if not len(columns["present"]):
            return frozenset()
        everywhere = [bool(column.all()) for column in columns["present"].numpy().T]
        complete = set()
        for modality, bit in zip(self._modalities, self._columns_of_present, strict=True):
            lengths = columns.get(f"{modality}_length")
            is_full = lengths is None or lengths.numpy().min() >= columns[modality].shape[-1]
            if modality == "numbers":
                is_full = not np.isnan(columns[modality].numpy()).any()
            if everywhere[bit] and is_full:
                complete.add(modality)
        return frozenset(complete)

    def _standardised(self, modality: str, moved: dict[str, Tensor]) -> Tensor:
        values = moved[modality]
        if modality == "audio" and self._waveform:
            lengths = moved["audio_length"]
            return prepared_waveforms(values, lengths, self._waveform.normalises)
        if modality == "text":
            return values.to(torch.int64, copy=True)
        if modality == "numbers":
            return prepared_numbers(values, *self._scale[modality])
        return standardised(values, *self._scale[modality])


class CopyStream:
    """Copy batches to a GPU beside its computations. On the CPU nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def to_device(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Begin to copy. What the current stream does next with the copies waits for them."""
        if self._stream is None:
            return {name: column.to(self._device) for name, column in columns.items()}
        with torch.cuda.stream(self._stream):
            moved = {
                name: column.to(self._device, non_blocking=True) for name, column in columns.items()
            }
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for column in moved.values():
            # Otherwise the copy stream could reuse its memory while the current one reads it.
            column.record_stream(current)
        return moved


def standardised(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (values - mean) / deviation as float32: values [B, C, ...], mean and deviation [C]."""
    shape = (1, -1) + (1,) * (values.dim() - 2)
    return (values.float() - mean.view(shape)) / std.view(shape)


def second_texts(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the place of the second text of pairs, in memory of its own. Empty if there is none.

    It is one of the lengths that the network gets.
    """
    if TEXT_SECOND not in columns:
        return {}
    return {TEXT_SECOND: columns[TEXT_SECOND].to(torch.int64, copy=True)}


def cut_text(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut tokens that are padding in every sample, and keep a multiple of 8."""
    if "text" not in columns or "text_length" not in columns or not len(columns["text"]):
        return columns
    longest = max(1, int(columns["text_length"].numpy().max()))
    num_tokens = -(-longest // TEXT_MULTIPLE) * TEXT_MULTIPLE  # rounded up
    return columns | {"text": columns["text"][:, :num_tokens]}


def _mix_of(moved: dict[str, Tensor]) -> Mix | None:
    if _MIX[0] not in moved:
        return None
    return Mix(*(moved[name] for name in _MIX))


_MIX = ("mix.partner", "mix.weight")
_LABEL_DTYPES = {
    "multi_label": torch.float32,
    "single_label": torch.int64,
    "ordinal": torch.int64,
}


def _column(values: tuple[float, ...], device: torch.device, modality: str) -> Tensor:
    dtype = torch.float64 if modality == "numbers" else torch.float32
    return torch.tensor(values, dtype=dtype, device=device)
