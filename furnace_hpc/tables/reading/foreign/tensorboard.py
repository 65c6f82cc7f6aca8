"""Read the event files of a TensorBoard run, if the package `tensorboard` is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from furnace_hpc.config.errors import ConfigError


class EventRun(NamedTuple):
    """One folder of event files."""

    name: str
    tags: Sequence[str]
    value: float | None  # at the last step; None if the run did not log the metric
    step: int


def event_runs(path: Path, metric: str) -> EventRun:
    """Read the last value of a metric from a folder of event files, or from one such file.

    Raises:
        ConfigError: tensorboard is not installed, or the metric is not a scalar.
    """
    if not find_spec("tensorboard"):
        raise ConfigError(
            f"{path}: event files need the package tensorboard. Install it with "
            f"`pip install tensorboard`, or give the CSV files that TensorBoard's page downloads"
        )
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        EventAccumulator,
    )

    folder = path if path.is_dir() else path.parent
    # The default keeps 10,000 scalars of a tag, a sample that always has the last one.
    accumulator = EventAccumulator(str(path)).Reload()
    found = accumulator.Tags()
    tags = list(found["scalars"])
    if metric in found["tensors"]:
        raise ConfigError(
            f"{path}: {metric} is a tensor, as TensorFlow 2 writes scalars, and cannot be read. "
            f"Give the CSV files that TensorBoard's page downloads"
        )
    if metric not in tags:
        return EventRun(folder.name, tags, None, -1)
    last = max(accumulator.Scalars(metric), key=lambda event: (event.step, event.wall_time))
    return EventRun(folder.name, tags, float(last.value), int(last.step))
