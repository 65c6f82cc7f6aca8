"""The plan of `furnace submit` for a grid of invented runs."""

from pathlib import Path

from tuned_study import PRINTS

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.grids.expansion import expand_rows
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.launch.grids.options import Options
from furnace_hpc.launch.grids.plan_grid import make_plan_of
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import read_status

LOCAL = ClusterProfile(name="local", executor="local")


def planned(
    path: Path,
    grid: Grid,
    *rows: str,
    seeds: tuple[int, ...] | None = None,
    new_code: bool = False,
) -> Plan:
    """The plan of the rows and seeds. By default all of them."""
    chosen = [row for row in expand_rows(grid) if not rows or row.name in rows]
    options = Options(
        grid=grid,
        profile=LOCAL,
        folder=GridFolder(path / grid.name),
        data_root=path / "data",
        variants=[row.name for row in chosen],
        seeds=list(map(str, seeds or grid.seeds)),
        retry=frozenset(),
        resume_with={},
        new_code=new_code,
        adopt=True,
        dry_run=False,
        prepare=False,
    )
    return make_plan_of(options, chosen, PRINTS, read_status)
