"""Slurm's own commands, asked from the login node. Nothing else runs them, but submitit runs sbatch."""

import shutil
import subprocess

from furnace_hpc.spec.errors import ConfigError

TIMEOUT_S = 20


def has_slurm() -> bool:
    """Whether this is a machine that can submit to Slurm."""
    return shutil.which("sbatch") is not None


def require_slurm(cluster: str) -> None:
    """Raise ConfigError where nothing can be submitted."""
    if not has_slurm():
        raise ConfigError(f"cluster {cluster!r} needs Slurm, but there is no sbatch on PATH: use a login node")


def cluster_name() -> str | None:
    """Slurm's ClusterName here; None when the controller does not answer."""
    try:
        command = ["scontrol", "show", "config"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    for line in answer.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ClusterName":
            return value.strip()
    return None
