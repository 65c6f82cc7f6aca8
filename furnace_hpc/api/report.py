"""Find the report of a grid, make it if it is missing, and compare its age with the runs."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.config.grids.grid import Grid, results_name
from furnace_hpc.runs.folder import GridFolder

REPORT = "report.html"
OF_RUNS = ("*/result.json", "*/attempts/*.json")


class Report(NamedTuple):
    """The report of a grid."""

    path: Path
    num_made: int  # files that were written now; 0 if the report was there
    behind_s: float  # seconds by which it is older than the newest file of a run; at least 0


def find_report(
    grid: Grid, folder: GridFolder, out: Path | None = None, given_name: str = ""
) -> Report:
    """Return the report, and make it as `furnace aggregate` does if it is missing.

    Args:
        grid: the grid with its settings.
        folder: of its runs.
        out: folder of the results. None: a folder in `results/`.
        given_name: name or path of the grid in the user's command, for errors.

    Raises:
        ConfigError: it is missing, and the grid has no runs.
    """
    place = out or Path("results") / results_name(grid)
    path = place / REPORT
    if path.exists():
        written_s = path.stat().st_mtime
        return Report(path, 0, max(0.0, _newest_s(folder) - written_s))
    from furnace_hpc.api.grid_table import make_table
    from furnace_hpc.tables.output.results import write_results
    from furnace_hpc.tables.view import View

    ablation = make_table(grid, folder, View(), given_name=given_name)
    files = write_results(ablation, place, figures=bool(find_spec("matplotlib")))
    return Report(path, len(files), 0.0)


def _newest_s(folder: GridFolder) -> float:
    """Time at which a run last began, ended, or wrote its result. 0 if none did."""
    times = [path.stat().st_mtime for pattern in OF_RUNS for path in folder.path.glob(pattern)]
    return max(times, default=0.0)
