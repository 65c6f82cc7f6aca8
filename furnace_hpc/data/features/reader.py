"""Batches in which features of frozen encoders replace the input of some modalities.

B batch, T tokens, H width of an encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.data.columns import Columns
from furnace_hpc.data.features.store import Features, StoredFeatures
from furnace_hpc.data.loading.batches import Batch, BatchReader, HostBatch, Rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def mask_key(modality: str) -> str:
    """The key of a modality's mask of tokens, in the lengths of a batch that has its features."""
    return f"{modality}.mask"


class Source(Protocol):
    """The features of a modality, stored or computed."""

    is_stored: bool

    def take(self, split: str, places: Rows) -> tuple[Tensor, Tensor]:
        """Features [B, T, H] and mask [B, T] of samples, or of frames of clips.

        A source that is not stored is called in the main thread only.
        """


class FromFiles:
    """Features that are read from files."""

    is_stored = True

    def __init__(self, stored: StoredFeatures, is_pinned: bool) -> None:
        self._stored, self._is_pinned = stored, is_pinned

    def take(self, split: str, places: Rows) -> tuple[Tensor, Tensor]:
        """Features [B, T, H] and mask [B, T] of samples."""
        found = self._stored.take(split, places.tolist())
        layout = self._stored.layout
        return padded(found, layout.width, DTYPES[layout.dtype], self._is_pinned)


def padded(
    found: Sequence[Features], width: int, dtype: torch.dtype, is_pinned: bool = False
) -> tuple[Tensor, Tensor]:
    """Join the features of samples. Zeros follow those of shorter ones."""
    longest = max([1, *(len(mask) for _, mask in found)])
    shape = (len(found), longest)
    tokens_BTH = torch.empty(*shape, width, dtype=dtype, pin_memory=is_pinned)
    mask_BT = torch.empty(shape, dtype=torch.uint8, pin_memory=is_pinned)
    for tokens, mask, (own_tokens, own_mask) in zip(
        stored_form(tokens_BTH), mask_BT.numpy(), found, strict=True
    ):
        number = len(own_mask)
        tokens[:number], tokens[number:] = own_tokens, 0
        mask[:number], mask[number:] = own_mask, 0
    return tokens_BTH, mask_BT


def stored_form(tokens: Tensor) -> Any:
    """Tokens as numpy can store them: bfloat16 as integers."""
    if tokens.dtype == torch.bfloat16:
        return tokens.view(torch.int16).numpy().view(np.uint16)
    return tokens.numpy()


class _Inputs(NamedTuple):
    """Arguments of a BatchReader."""

    columns: Columns
    split: str
    modalities: tuple[str, ...]
    tasks: tuple[str, ...]
    device: torch.device


class FeatureReader(BatchReader):
    """Reads batches of one split, with the features of some modalities."""

    def __init__(self, sources: Mapping[str, Source], *inputs: Any) -> None:
        given = _Inputs(*inputs)
        super().__init__(*given)
        self._split, self._features = given.split, sources
        for name in sources:
            for column in (name, f"{name}_length"):
                self._sources.pop(column, None)
                self.stored.pop(column, None)  # it is not read ahead either
        if "text" in sources:
            self._sources.pop(TEXT_SECOND, None)

    def gather(
        self,
        rows: Rows,
        frames: Rows | None = None,
        epochs: Rows | None = None,
        from_file: bool = False,
    ) -> HostBatch:
        """Copy samples as the other reader does, and stored features from their files."""
        host = super().gather(rows, frames, epochs, from_file)
        columns: dict[str, Tensor] = {}
        for name, source in self._features.items():
            places = rows
            if name == "image" and self.image_frames:
                shown = self.image_frames // 2 if frames is None else frames
                places = rows * self.image_frames + shown
            columns[name] = torch.from_numpy(places)
            if source.is_stored:
                columns |= self._taken(name, source, places)
        return self._with(host, columns)

    def to_device(self, host: HostBatch) -> Batch:
        """Move and standardise a batch. Compute the features that are not stored."""
        computed: dict[str, Tensor] = {}
        for name, source in self._features.items():
            if not source.is_stored:
                computed |= self._taken(name, source, host.columns[name].numpy())
        return super().to_device(self._with(host, computed))

    def _taken(self, name: str, source: Source, places: Rows) -> dict[str, Tensor]:
        tokens_BTH, mask_BT = source.take(self._split, places)
        return {name: tokens_BTH, mask_key(name): mask_BT}

    def _with(self, host: HostBatch, columns: dict[str, Tensor]) -> HostBatch:
        """The batch with more columns. A modality with a masked token is not complete."""
        masked = {
            name
            for name in self._features
            if (mask_BT := columns.get(mask_key(name))) is not None and not bool(mask_BT.all())
        }
        return replace(host, columns=host.columns | columns, complete=host.complete - masked)

    def _standardised(self, modality: str, moved: dict[str, Tensor]) -> Tensor:
        if modality in self._features:  # in memory of their own
            return moved[modality]
        return super()._standardised(modality, moved)

    def _lengths(self, moved: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = {mask_key(name): moved[mask_key(name)].bool() for name in self._features}
        return super()._lengths(moved) | masks
