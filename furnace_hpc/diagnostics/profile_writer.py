"""Write a profile of this cluster from Slurm's settings, for the user to read and keep."""

import re
from pathlib import Path
from typing import Any

from furnace_hpc.config.base import NAME_PATTERN
from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing import strict_yaml
from furnace_hpc.config.parsing.lookup import FOLDERS
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.diagnostics.partitions import Partition
from furnace_hpc.diagnostics.slurm_info import SlurmFacts
from furnace_hpc.runs.folder import write_atomically

MEMORY_SHARE = 0.95  # of a node: some sites keep the rest for the system
DEFAULT_LEAD_S = 120
NO_LIMIT_MIN = 10**6
NOTES = {
    "account": "pays",
    "nodes": "of a run whose grid does not set it",
    "processes_per_node": "ranks: one per GPU",
    "signal_delay_s": "before the time limit: ranks get the signal to save",
    "array_parallelism": "runs at the same time",
}
NO_ACCOUNT = "you may charge several: `sacctmgr show assoc user=$USER`"


def write_profile(
    name: str, facts: SlurmFacts | None, partition: str | None, replace: bool
) -> Path:
    """Write slurm/clusters/NAME.yaml in the working directory, and return its path.

    Raises:
        ConfigError: the name is invalid, the file exists, or Slurm's settings give no profile.
    """
    path = check_new(name, replace)
    content = profile_of(name, facts, partition)
    profile = validate(ClusterProfile, content, f"profile {name!r}")
    notes = dict(NOTES)
    if profile.account is None:
        notes["account"] = NO_ACCOUNT
    source = "Slurm's settings" if facts else "this machine"
    lines = [f"# Written by furnace doctor from {source}. Read it, and change what is wrong."]
    for key, value in content.items():
        line = strict_yaml.dump({key: value}, default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{line:<26} # {notes[key]}" if key in notes else line)
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def check_new(name: str, replace: bool) -> Path:
    """Return the path of a new profile.

    Raises:
        ConfigError: the name is invalid, or the file exists and is not to be replaced.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"--write-profile got {name!r}, wanted a name of letters, digits, dot, dash, underscore"
        )
    path = Path(FOLDERS["cluster"]) / f"{name}.yaml"
    if path.exists() and not replace:
        raise ConfigError(f"{path} exists. Choose another name, or give --force to replace it")
    return path


def profile_of(name: str, facts: SlurmFacts | None, partition: str | None = None) -> dict[str, Any]:
    """Make the profile's content for these partitions, or for one partition if None."""
    if facts is None:
        return {"name": name, "executor": "local"}
    parts = choose_partitions(facts, partition)
    gpus, cpus = min(part.gpus for part in parts), min(part.cpus for part in parts)
    memory_mb = min(part.memory_mb for part in parts)
    longest_min = min((part.max_min for part in parts if part.max_min), default=NO_LIMIT_MIN)
    usable = sum(kind.usable for part in parts for kind in part.described)
    ranks = gpus or 1
    content: dict[str, Any] = {
        "name": name,
        "executor": "slurm",
        "cluster_name": facts.config.get("ClusterName"),
        "partition": ",".join(part.name for part in parts),
        "account": _only({one.account for one in facts.associations}),
        "nodes": 1,
        "processes_per_node": ranks,
        "gpus_per_node": gpus,
        "gpu_flag": _gpu_flag(facts, gpus),
        "gpu_type": None,
        "cpus_per_task": max(1, cpus // ranks),
        "mem_gb": None,
        "signal_delay_s": max(10, min(DEFAULT_LEAD_S, longest_min * 60 // 8)),
        "array_parallelism": max(1, min(32, usable)),
    }
    if gpus:
        content["gpu_type"] = _only({part.gpu_type for part in parts}) or None
    if memory_mb > 1024:
        content["mem_gb"] = max(1, int(memory_mb / 1024 * MEMORY_SHARE))
    return {key: value for key, value in content.items() if value is not None or key == "account"}


def _only(names: set[str]) -> str | None:
    return names.pop() if len(names) == 1 else None


def _gpu_flag(facts: SlurmFacts, gpus: int) -> str | None:
    """The first sbatch flag for GPUs that the site accepts. None if there are no GPUs."""
    if not gpus:
        return None
    accepted = (flag for flag, problem in facts.gpu_flags.items() if not problem)
    return next(accepted, "gpus_per_node")


def choose_partitions(facts: SlurmFacts, partition: str | None) -> list[Partition]:
    """Choose the partitions of a profile: those of this list, or the best one if None.

    Raises:
        ConfigError: a name is unknown, or no partition is up.
    """
    names = ", ".join(part.name for part in facts.partitions) or "none"
    if partition:
        parts, missing = facts.named(partition)
        if parts and not missing:
            return parts
        got = ", ".join(missing) or partition
        raise ConfigError(f"--partition got {got!r}, wanted one of this cluster's: {names}")
    up = [part for part in facts.partitions if part.is_up and part.nodes]
    if not up:
        raise ConfigError(
            f"no partition takes jobs now (there are: {names}). Try later, or give --partition"
        )
    return [max(up, key=_rank)]


def _rank(part: Partition) -> tuple[bool, bool, int, int]:
    """Prefer GPUs, then the default partition, then more usable nodes, then longer jobs."""
    return part.gpus > 0, part.is_default, part.usable, part.max_min or 10**9
