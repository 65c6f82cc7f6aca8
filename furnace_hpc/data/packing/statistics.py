"""Compute mean and deviation of columns that are too large for memory, from sums over chunks.

The sums are recorded with the progress of a pack.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.manifest import Statistics
from furnace_hpc.data.packing.sample import Values

BLOCK_ROWS = 1 << 16  # of numbers in memory at a time
MEASURED = {"image": -3, "audio": -2}  # modality -> axis of its channels or coefficients


@dataclass
class Moments:
    """Count, sum and sum of squares per channel or coefficient, over present and valid values."""

    count: int
    total: list[float]
    squares: list[float]

    def plus(self, other: "Moments") -> "Moments":
        """Add another chunk's. The order changes the last bits, so it is always the same."""
        return Moments(
            self.count + other.count,
            [a + b for a, b in zip(self.total, other.total, strict=True)],
            [a + b for a, b in zip(self.squares, other.squares, strict=True)],
        )

    def statistics(self) -> Statistics:
        """Return mean and deviation. 0 and 1 if there was no value."""
        if self.count == 0:
            return Statistics(mean=(0.0,) * len(self.total), std=(1.0,) * len(self.total))
        mean = np.array(self.total) / self.count
        variance = np.maximum(np.array(self.squares) / self.count - mean**2, 0.0)
        return Statistics(
            mean=tuple(mean.tolist()), std=tuple(np.maximum(np.sqrt(variance), 1e-6).tolist())
        )


def target_statistics(targets_NT: NDArray[Any]) -> Statistics:
    """Return mean and deviation of the targets of a regression. A constant has the deviation 1."""
    mean, std = targets_NT.mean(0, np.float64), targets_NT.std(0, np.float64)
    return Statistics(mean=tuple(mean.tolist()), std=tuple(np.where(std > 0, std, 1.0).tolist()))


def number_statistics(numbers_NC: NDArray[Any]) -> Statistics:
    """Return mean and deviation of each column of numbers, without the missing ones (NaN).

    A column that is constant or has no number gets the deviation 1. A block of rows is in memory at
    a time.
    """
    num_columns = numbers_NC.shape[1]
    known, total, rest, squares = (np.zeros(num_columns) for _ in range(4))
    least, most = np.full(num_columns, np.nan), np.full(num_columns, np.nan)
    starts = range(0, len(numbers_NC), BLOCK_ROWS)
    for start in starts:
        block = numbers_NC[start : start + BLOCK_ROWS]
        known += np.count_nonzero(~np.isnan(block), axis=0)
        total += np.nansum(block, axis=0)
        least = np.fmin(least, np.fmin.reduce(block))
        most = np.fmax(most, np.fmax.reduce(block))
    known = np.maximum(known, 1)
    rough = total / known
    for start in starts:
        difference = numbers_NC[start : start + BLOCK_ROWS] - rough
        rest += np.nansum(difference, axis=0)
        squares += np.nansum(difference**2, axis=0)
    variance = np.maximum(squares / known - (rest / known) ** 2, 0)
    std = np.where(most > least, np.sqrt(variance), 1.0)
    return Statistics(mean=tuple((rough + rest / known).tolist()), std=tuple(std.tolist()))


def measure(columns: Values, modalities: tuple[str, ...]) -> dict[str, Moments]:
    """Return moments of a chunk's present images [N, (F,) C, H, W] and sounds [N, K, T].

    Sounds count up to their true length. Waveforms are not measured.
    """
    found = {}
    for modality, channel_axis in MEASURED.items():
        if modality in columns and columns[modality].ndim > 2:  # a waveform has no channels
            present = columns["present"][:, modalities.index(modality)].astype(bool)
            lengths = columns.get(f"{modality}_length")
            if lengths is not None:
                lengths = lengths[present]
            found[modality] = _moments(columns[modality][present], lengths, channel_axis)
    return found


def _moments(values: NDArray[Any], lengths: NDArray[Any] | None, channel_axis: int) -> Moments:
    rows = np.moveaxis(values, channel_axis, 0)
    if lengths is not None:
        rows = rows[:, np.arange(values.shape[-1]) < lengths[:, None]]
    rows = rows.reshape(len(rows), -1)
    if rows.dtype == np.uint8:
        levels = np.arange(256)
        counts = [np.bincount(row, minlength=256) for row in rows]
        total = [float(count @ levels) for count in counts]
        return Moments(rows.shape[1], total, [float(count @ levels**2) for count in counts])
    wide = rows.astype(np.float64)
    return Moments(rows.shape[1], wide.sum(axis=1).tolist(), (wide**2).sum(axis=1).tolist())
