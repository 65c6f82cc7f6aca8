"""A row of a grid, and its runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.seeds import pack_seed
from furnace_hpc.config.train_config import RunSpec, TrainConfig


@dataclass(frozen=True)
class GridRow:
    """One row of a grid. Each of its runs has `config` with its own seed and pack."""

    name: str
    config: TrainConfig
    resources: Resources
    packs: tuple[str, ...]  # data sets that it is trained on; one, unless the grid has `packs`
    variant: str = ""  # its entry in `variants`, before axes
    overrides: Overrides = field(default_factory=dict)  # all that differs from the base


def runs_on(
    grid: Grid, row: GridRow, pack: str, seeds: Sequence[int], fingerprint: str
) -> list[RunSpec]:
    """The runs of a row on one pack, seed by seed."""
    of_pack: dict[str, Any] = {}
    if pack != row.config.data.name:
        of_pack["data"] = row.config.data.model_copy(update={"name": pack})
    if len(row.packs) > 1:
        of_pack["pack_seed"] = pack_seed(pack)
    return [
        RunSpec.model_construct(  # its parts are valid already; this is ten times as fast
            grid=grid.name,
            variant=row.name,
            config=row.config.model_copy(update={"seed": seed, **of_pack}),
            resources=row.resources,
            data_fingerprint=fingerprint,
        )
        for seed in seeds
    ]
