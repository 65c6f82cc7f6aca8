"""Furnace: an ablation table you can trust, whatever the cluster does to your jobs."""

# Annotations of `results` are texts, so that this import loads nothing else. The host imports this
# file too, with Python 3.6.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Literal

    from furnace_hpc.api.frames import Results

__version__ = "0.1.0"


def results(
    grid: str,
    *,
    runs_dir: "str | Path | None" = None,
    settings: "Sequence[str]" = (),
    metric: "str | Sequence[str] | None" = None,
    direction: "Literal['max', 'min'] | None" = None,
    by: "Sequence[str]" = (),
    where: "Sequence[str]" = (),
) -> "Results":
    """The results of a grid as polars frames: `.table`, `.runs`, `.curves` and `.trials`.

    Args:
        grid: name of a submitted grid, or path of its file.
        runs_dir: folder of the runs [$FURNACE_RUNS or ./runs].
        settings: `key=value` as given to `furnace submit --set`.
        metric: another metric than the grid's, or a list. The first one decides verdicts.
        direction: `max` if higher values are better, `min` if lower [from the metric].
        by: config keys whose values make the rows.
        where: `key=value`. Only these runs are shown.

    Raises:
        ConfigError: the grid is unknown or has no runs, or an argument is wrong.
    """
    from furnace_hpc.api.frames import load

    return load(grid, runs_dir, settings, metric, direction, by, where)
