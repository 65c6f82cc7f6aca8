"""Choose and open the tracker of a target. Its library is imported only then."""

import os
from importlib.util import find_spec
from pathlib import Path

from furnace_hpc.config.cluster import TrackerTarget
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.trackers.tracker import Tracker, missing

MLFLOW_URI = "MLFLOW_TRACKING_URI"


def check_target(target: TrackerTarget) -> None:
    """Refuse a target that cannot work, before anything is read.

    Raises:
        ConfigError: its library is not installed, or its address is missing or wrong.
    """
    if target.to == "mlflow":
        address = mlflow_address(target)
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"the address of MLflow is {address!r}, wanted http:// or https:// of an MLflow "
                f"server. Start one with `mlflow server`, and give --at http://HOST:PORT or set "
                f"{MLFLOW_URI}"
            )
    elif find_spec(target.to) is None:
        raise missing(target.to)


def open_tracker(target: TrackerTarget, folder: GridFolder) -> Tracker:
    """Open the tracker of a target.

    Raises:
        ConfigError: its library cannot be imported.
        UnavailableError: it does not answer.
    """
    project = target.project or folder.path.name
    own_folder = folder_of(target, folder)
    if target.to == "mlflow":
        from furnace_hpc.trackers.mlflow import MLflow

        return MLflow(mlflow_address(target), project)
    if target.to == "wandb":
        from furnace_hpc.trackers.wandb import Wandb

        return Wandb(project, own_folder, folder.trackers, target.at)
    if target.to == "trackio":
        from furnace_hpc.trackers.trackio import Trackio

        return Trackio(project, own_folder)
    from furnace_hpc.trackers.tensorboard import TensorBoard

    return TensorBoard(own_folder or folder.trackers / "tensorboard")


def folder_of(target: TrackerTarget, folder: GridFolder) -> Path | None:
    """The folder that only this mirror writes. None if the tracker is a server or has its own."""
    if target.to == "trackio":
        return Path(target.at).expanduser() if target.at else None
    if target.to == "tensorboard" or target.offline:
        default = folder.trackers / target.to
        is_folder = target.at and target.to == "tensorboard"
        return Path(str(target.at)).expanduser() if is_folder else default
    return None


def mlflow_address(target: TrackerTarget) -> str:
    """The address of MLflow's server. Empty if none is given."""
    return (target.at or os.environ.get(MLFLOW_URI, "")).rstrip("/")
