"""Check a profile's container on the login node, and print how ranks start in it."""

import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.container import Container
from furnace_hpc.host.container.command import find_odd_character
from furnace_hpc.host.container.image import SIF, SQUASHFS, image_kind

STARTS = {"apptainer": (SIF, SQUASHFS, "folder"), "pyxis": (SQUASHFS,)}
SRUN_HELP_S = 20


def host_python(profile: ClusterProfile) -> str:
    """Return the Python of jobs without ranks. It runs on the host, not in the container."""
    if profile.container:
        return sys.executable
    return profile.python or sys.executable


def check_container(profile: ClusterProfile, folders: Iterable[Path]) -> None:
    """Check what the login node can know of the profile's container.

    Args:
        profile: of the cluster. Nothing is checked if its ranks run on the host.
        folders: folders that the ranks see inside: runs and data.

    Raises:
        ConfigError: the image is missing, is none, or can be changed by others. Or a folder is
            missing, or cannot be mounted. Or srun has no pyxis.
    """
    container = profile.container
    if container is None:
        return
    _check_image(container)
    for mount in container.mounts:
        if not Path(source := mount.partition(":")[0]).exists():
            raise ConfigError(
                f"container.mounts: {source} does not exist here. Make it, or remove the mount"
            )
    for folder in folders:
        if odd := find_odd_character(str(folder.absolute())):
            raise ConfigError(
                f"folder {folder.absolute()} contains {odd!r}, so it cannot be mounted in a "
                f"container. Choose another place (--runs-root, --data-root)"
            )
    if container.runtime == "pyxis":
        _check_pyxis()


def _check_image(container: Container) -> None:
    image = container.image
    try:
        kind, mode = image_kind(image), Path(image).stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"container.image {image} cannot be read: {error.strerror}. Give the absolute path of "
            f"an image that this node can read"
        ) from None
    if kind not in STARTS[container.runtime]:
        found = {"": "no image", "folder": "a folder", SIF: "a SIF image"}.get(kind, kind)
        wanted = ", ".join(STARTS[container.runtime])
        raise ConfigError(
            f"container.image {image} is {found}, and {container.runtime} starts: {wanted}. Give "
            f"another image or another container.runtime"
        )
    if mode & stat.S_IWOTH:
        raise ConfigError(
            f"container.image {image} may be written by all users (mode {stat.S_IMODE(mode):04o}): "
            f"its content could run anything as you. If no other user has changed it: chmod o-w "
            f"{image}"
        )


def _check_pyxis() -> None:
    """Raise ConfigError if srun does not have the options of pyxis. No answer is no problem."""
    if shutil.which("srun") is None:
        return
    try:
        done = subprocess.run(
            ["srun", "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SRUN_HELP_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    if done.returncode == 0 and "--container-image" not in done.stdout:
        raise ConfigError(
            "container.runtime pyxis: this srun has no --container-image. Ask the site for the "
            "pyxis plugin of Slurm, or use runtime: apptainer"
        )
