"""Split runs into arrays that a site accepts, and arrays into waves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from furnace_hpc.launch.planning.plan import Shape

DEFAULT_MAX_ARRAY_SIZE = 1001  # Slurm's default, used if Slurm cannot be asked


@dataclass(frozen=True)
class Limits:
    """What a site accepts."""

    max_array_size: int = DEFAULT_MAX_ARRAY_SIZE  # the highest index is one less
    free_jobs: int | None = None  # array elements to submit now; None if there is no limit


@dataclass(frozen=True)
class Array:
    """Rows of one shape in one array. Index = row - base."""

    shape: Shape
    base: int
    rows: tuple[int, ...]

    @property
    def indices(self) -> list[int]:
        """Array task ids."""
        return [row - self.base for row in self.rows]


def next_wave(shapes: Mapping[Shape, Sequence[int]], limits: Limits) -> list[Array]:
    """Return the arrays to submit now. Other rows wait for a later wave.

    If a row is below the size limit, it is its own index. So a retry keeps its index.
    """
    left = sum(map(len, shapes.values()))
    if limits.free_jobs is not None:
        left = max(0, limits.free_jobs)
    arrays = []
    for shape, rows in shapes.items():
        for part in _parts(sorted(rows), limits.max_array_size):
            taken = tuple(part[:left])
            left -= len(taken)
            if taken:
                fits = taken[-1] < limits.max_array_size
                arrays.append(Array(shape, 0 if fits else taken[0], taken))
    return arrays


def _parts(rows: list[int], size: int) -> list[list[int]]:
    """Split rows so that no part spans more than `size` numbers."""
    parts: list[list[int]] = []
    end = 0
    for row in rows:
        if row >= end:
            parts.append([])
            end = size if row < size else row + size
        parts[-1].append(row)
    return parts


def ranges(indices: Sequence[int]) -> str:
    """Return indices in Slurm's form: 0-3,7."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)
