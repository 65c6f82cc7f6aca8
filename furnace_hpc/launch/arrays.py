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
    """Rows of one shape in one array. Index = row - base.

    If several runs share a node, each index has as many rows, in order. The base does not count.
    """

    shape: Shape
    base: int
    rows: tuple[int, ...]

    @property
    def indices(self) -> list[int]:
        """Array task ids."""
        if self.shape.runs_per_node > 1:
            return list(range(self.shape.num_jobs(len(self.rows))))
        return [row - self.base for row in self.rows]

    @property
    def shared_rows(self) -> list[str]:
        """Arguments of slurm/array.sbatch after the submission. Empty if no runs share a node."""
        if self.shape.runs_per_node == 1:
            return []
        return [ranges(self.rows), str(self.shape.runs_per_node)]


def next_wave(shapes: Mapping[Shape, Sequence[int]], limits: Limits) -> list[Array]:
    """Return the arrays to submit now. Other rows wait for a later wave.

    If a row is below the size limit, it is its own index. So a retry keeps its index.
    """
    left = sum(map(len, shapes.values()))
    if limits.free_jobs is not None:
        left = max(0, limits.free_jobs)
    arrays = []
    for shape, rows in shapes.items():
        is_shared = shape.runs_per_node > 1
        split = _chunks if is_shared else _parts
        for part in split(sorted(rows), limits.max_array_size * shape.runs_per_node):
            taken = tuple(part[: left * shape.runs_per_node])
            left -= shape.num_jobs(len(taken))
            if taken:
                fits = is_shared or taken[-1] < limits.max_array_size
                arrays.append(Array(shape, 0 if fits else taken[0], taken))
    return arrays


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    """Split rows so that no part has more than `size` of them."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


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
