"""The user's choices for a submission: the grid, the cluster, rows, seeds, and runs to retry."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.expansion import check_deepspeed_files, expand_rows
from furnace_hpc.config.grids.grid import Grid, select_names
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.config.parsing.lookup import data_root, runs_root
from furnace_hpc.launch.planning.planner import check_retry
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.resume_overrides import read_overrides


@dataclass(frozen=True)
class Options:
    """The grid, the cluster and the user's choices, read and checked."""

    grid: Grid
    profile: ClusterProfile
    folder: GridFolder
    data_root: Path
    variants: list[str]
    seeds: list[str]
    retry: frozenset[str]
    resume_with: Mapping[str, Any]
    new_code: bool
    adopt: bool
    dry_run: bool
    prepare: bool
    canary: bool = False

    @property
    def on_slurm(self) -> bool:
        """Whether the command submits jobs, and asks Slurm for the state of runs."""
        return self.profile.executor == "slurm" and not (self.dry_run or self.prepare)

    @property
    def runs_here(self) -> bool:
        """Whether the command runs a queue on this machine."""
        return self.profile.executor == "local" and not (self.dry_run or self.prepare)


def read_options(
    grid: Grid,
    profile: ClusterProfile,
    *,
    variants: Sequence[str] = (),
    seeds: Iterable[int] = (),
    retry: str = "",
    new_code: bool = False,
    adopt: bool = True,
    resume_with: Sequence[str] = (),
    canary: bool = False,
    dry_run: bool = False,
    prepare: bool = False,
    runs_dir: Path | None = None,
    data_dir: Path | None = None,
) -> tuple[Options, list[GridRow]]:
    """Check the user's choices. Return them, and all rows of the grid.

    Raises:
        ConfigError: a row has a problem, a DeepSpeed file has changed since the grid was read, or a
            choice names something that does not exist.
    """
    rows = expand_rows(grid)
    check_deepspeed_files(grid)
    options = Options(
        grid=grid,
        profile=profile,
        folder=GridFolder(runs_root(runs_dir) / grid.name),
        data_root=data_root(data_dir),
        retry=_read_retry(retry),
        resume_with=read_overrides(list(resume_with)),
        variants=select_names([row.name for row in rows], variants, "variant"),
        seeds=select_names(list(map(str, grid.seeds)), map(str, seeds), "seed"),
        new_code=new_code,
        adopt=adopt,
        dry_run=dry_run,
        prepare=prepare,
        canary=canary,
    )
    return options, rows


def _read_retry(text: str) -> frozenset[str]:
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    check_retry(words)
    return words
