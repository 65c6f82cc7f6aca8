"""Cutting runs into arrays that a site takes, and arrays into waves. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from furnace_hpc.launch.plan import Shape

DEFAULT_MAX_ARRAY_SIZE = 1001  # Slurm's own, where it cannot be asked


@dataclass(frozen=True)
class Limits:
    """What a site takes."""

    max_array_size: int = DEFAULT_MAX_ARRAY_SIZE  # the highest index is one less
    free_jobs: int | None = None  # elements that may be submitted now; none: no limit is known


@dataclass(frozen=True)
class Array:
    """Rows of one shape that go into one array. Index = row - base."""

    shape: Shape
    base: int
    rows: tuple[int, ...]

    @property
    def indices(self) -> list[int]:
        """Array task ids."""
        return [row - self.base for row in self.rows]


def next_wave(shapes: Mapping[Shape, Sequence[int]], limits: Limits) -> list[Array]:
    """The arrays that can be submitted now; what is not in them is left for a later wave.

    The index of a row is the row itself where that is small enough, so that a retry keeps its numbers.
    """
    left = limits.free_jobs if limits.free_jobs is not None else sum(map(len, shapes.values()))
    arrays = []
    for shape, rows in shapes.items():
        for part in _parts(sorted(rows), limits.max_array_size):
            taken = part[: max(0, left)]
            left -= len(taken)
            if taken:
                arrays.append(
                    Array(shape, 0 if taken[-1] < limits.max_array_size else taken[0], tuple(taken))
                )
    return arrays


def _parts(rows: list[int], size: int) -> list[list[int]]:
    """Rows cut so that no part spans more than `size` numbers."""
    parts: list[list[int]] = []
    end = 0
    for row in rows:
        if row >= end:
            parts.append([])
            end = size if row < size else row + size
        parts[-1].append(row)
    return parts


def ranges(indices: Sequence[int]) -> str:
    """Indices as Slurm writes them: 0-3,7."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
