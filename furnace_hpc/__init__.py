"""Furnace: an ablation table you can trust, whatever the cluster does to your jobs."""

# Annotations are texts, so that this import loads nothing else. The host imports this file too,
# with Python 3.6, which ignores `__getattr__`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, Literal

    from furnace_hpc.api.frames import Results
    from furnace_hpc.api.grid_plan import GridPlan
    from furnace_hpc.api.grid_status import GridStatus
    from furnace_hpc.api.study import Study
    from furnace_hpc.config.errors import ConfigError, UnavailableError

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "GridPlan",
    "GridStatus",
    "Results",
    "Study",
    "UnavailableError",
    "load_grid",
    "results",
]
_MODULES = {
    "ConfigError": "furnace_hpc.config.errors",
    "UnavailableError": "furnace_hpc.config.errors",
    "GridPlan": "furnace_hpc.api.grid_plan",
    "GridStatus": "furnace_hpc.api.grid_status",
    "Results": "furnace_hpc.api.frames",
    "Study": "furnace_hpc.api.study",
}


def __getattr__(name: str) -> "Any":
    """Import a class when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> "list[str]":
    """List the classes too, for completion in a notebook."""
    return sorted({*globals(), *_MODULES})


def load_grid(
    grid: "str | Path",
    *,
    settings: "Mapping[str, Any] | Sequence[str]" = (),
    runs_dir: "str | Path | None" = None,
    data_dir: "str | Path | None" = None,
) -> "Study":
    """Read and check a grid. Its methods plan, submit, follow and cancel the runs.

    Args:
        grid: name of a grid in experiments/, or path of its file.
        settings: values that override every row, as a mapping or a list of `key=value`.
        runs_dir: folder of the runs [$FURNACE_RUNS or ./runs].
        data_dir: folder of the packed data [$FURNACE_DATA or ./data].

    Raises:
        ConfigError: there is no such grid, or its file or a setting has problems. It lists all.

    Examples:
        >>> furnace.load_grid("ablation", settings={"steps": 100})
        <grid ablation: 4 rows x 10 seeds, test/digit/accuracy>
    """
    from furnace_hpc.api.study import Study

    return Study(grid, settings, runs_dir, data_dir)


def results(
    grid: str,
    *,
    runs_dir: "str | Path | None" = None,
    settings: "Mapping[str, Any] | Sequence[str]" = (),
    metric: "str | Sequence[str] | None" = None,
    direction: "Literal['max', 'min'] | None" = None,
    by: "Sequence[str]" = (),
    where: "Sequence[str]" = (),
) -> "Results":
    """The results of a grid as polars frames: `.table`, `.runs`, `.curves` and `.trials`.

    Args:
        grid: name of a submitted grid, or path of its file.
        runs_dir: folder of the runs [$FURNACE_RUNS or ./runs].
        settings: the settings that it was submitted with, as in `load_grid`.
        metric: another metric than the grid's, or a list. The first one decides verdicts.
        direction: `max` if higher values are better, `min` if lower [from the metric].
        by: config keys whose values make the rows.
        where: `key=value`. Only these runs are shown.

    Raises:
        ConfigError: the grid is unknown or has no runs, or an argument is wrong.

    Examples:
        >>> furnace.results("ablation").table["variant"].to_list()
        ['base', 'consistency_only', 'specific_only', 'full']
    """
    from furnace_hpc.api.frames import load

    return load(grid, runs_dir, settings, metric, direction, by, where)
