"""Features of a frozen encoder, computed from one sample at a time.

T tokens, H width of the encoder.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import Columns
from furnace_hpc.data.features.reader import padded, stored_form
from furnace_hpc.data.features.store import Features, Layout
from furnace_hpc.data.loading.batches import BatchReader, Rows
from furnace_hpc.model.frozen_features import FrozenEncoder


class Computed:
    """The features of all splits, computed when they are taken. Samples of clips are frames."""

    is_stored = False

    def __init__(
        self, encoder: FrozenEncoder, columns: Columns, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.modality, self._encoder = encoder.modality, encoder
        self._dtype = dtype
        given = ((encoder.modality,), (), device)
        self._readers: dict[str, BatchReader] = {
            split: BatchReader(columns, split, *given) for split in columns.manifest.splits
        }
        first = next(iter(self._readers.values()))
        self._frames = first.image_frames or 1
        self.sizes: dict[str, int] = {
            split: reader.num_samples * self._frames for split, reader in self._readers.items()
        }
        """Split -> samples, or frames of clips."""
        bit = columns.manifest.modalities.index(encoder.modality)
        self._present: dict[str, NDArray[np.bool_]] = {
            split: np.repeat(reader.column("present")[:, bit].astype(bool), self._frames)
            for split, reader in self._readers.items()
        }
        tokens, _ = self._longest(f"{encoder.modality}_length" in columns.manifest.columns)
        self.layout = Layout(tokens.shape[1], str(dtype).removeprefix("torch."))
        self.most_tokens = len(tokens)

    def present(self, split: str) -> NDArray[np.bool_]:
        """Which samples have the modality."""
        return self._present[split]

    def take(self, split: str, places: Rows) -> tuple[Tensor, Tensor]:
        """Features [B, T, H] and mask [B, T] of samples. Absent ones have no tokens."""
        present = self.present(split)[places]
        nothing = self.layout.split(np.empty(0, dtype=np.uint8), 0)
        found = [
            self.of_sample(split, int(row)) if is_present else nothing
            for row, is_present in zip(places, present, strict=True)
        ]
        return padded(found, self.layout.width, self._dtype)

    def of_sample(self, split: str, place: int) -> Features:
        """Features [T, H] and mask [T] of one sample, as they are stored."""
        row, frame = divmod(place, self._frames)
        reader = self._readers[split]
        frames = np.array([frame]) if reader.image_frames else None
        batch = reader.read(np.array([row]), frames)
        tokens_TH, mask_T = self._encoder.features(batch.inputs, batch.lengths)
        values = stored_form(tokens_TH.cpu().contiguous())
        return values, mask_T.cpu().numpy().astype(np.uint8)

    def _longest(self, has_lengths: bool) -> Features:
        """The features of the sample with the longest input."""
        best, longest = None, -1
        for split, reader in self._readers.items():
            present = np.flatnonzero(self.present(split))
            if not len(present):
                continue
            lengths = np.zeros(len(present), dtype=np.int64)
            if has_lengths:
                lengths = reader.column(f"{self.modality}_length")[present].astype(np.int64)
            place, length = int(present[np.argmax(lengths)]), int(lengths.max())
            if length > longest:
                best, longest = (split, place), length
        if best is None:
            raise ConfigError(f"no sample of the data set has the modality {self.modality}")
        return self.of_sample(*best)
