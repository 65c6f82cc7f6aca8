"""A profile of this cluster from what Slurm says, as a file to be read and kept."""

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


def write_profile(
    name: str, facts: SlurmFacts | None, partition: str | None, replace: bool
) -> Path:
    """Write slurm/clusters/NAME.yaml in the working directory; return its path.

    Raises:
        ConfigError: the name is none, there is such a file, or what Slurm says makes no profile.
    """
    path = check_new(name, replace)
    content = profile_of(name, facts, partition)
    profile = validate(ClusterProfile, content, f"profile {name!r}")
    notes = _notes(profile)
    lines = [
        f"# Written by furnace doctor from what {'Slurm' if facts else 'this machine'} said; read it, change it."
    ]
    for key, value in content.items():
        line = strict_yaml.dump({key: value}, default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{line:<26} # {notes[key]}" if key in notes else line)
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def check_new(name: str, replace: bool) -> Path:
    """Where the profile will lie.

    Raises:
        ConfigError: the name is none, or there is such a file.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"--write-profile got {name!r}, wanted a name of letters, digits, dot, dash, underscore"
        )
    path = Path(FOLDERS["cluster"]) / f"{name}.yaml"
    if path.exists() and not replace:
        raise ConfigError(
            f"{path} is there already: choose another name, or give --force to write over it"
        )
    return path


def profile_of(name: str, facts: SlurmFacts | None, partition: str | None = None) -> dict[str, Any]:
    """The profile's content: the partition that was asked for, else one with GPUs, else the default one."""
    if facts is None:
        return {"name": name, "executor": "local"}
    parts = choose_partitions(facts, partition)
    gpus, cpus = min(part.gpus for part in parts), min(part.cpus for part in parts)
    memory_mb = min(part.memory_mb for part in parts)
    types = {part.gpu_type for part in parts if gpus}
    longest = min((part.max_min for part in parts if part.max_min), default=10**6)
    ranks = gpus or 1
    flags = [way for way, against in facts.gpu_flags.items() if not against]
    accounts = list(dict.fromkeys(one.account for one in facts.associations))
    content: dict[str, Any] = {
        "name": name,
        "executor": "slurm",
        "cluster_name": facts.config.get("ClusterName"),
        "partition": ",".join(part.name for part in parts),
        "account": accounts[0] if len(accounts) == 1 else None,
        "nodes": 1,
        "processes_per_node": ranks,
        "gpus_per_node": gpus,
        "gpu_flag": (flags or ["gpus_per_node"])[0] if gpus else None,
        "gpu_type": types.pop() or None if len(types) == 1 else None,
        "cpus_per_task": max(1, cpus // ranks),
        "mem_gb": max(1, int(memory_mb / 1024 * MEMORY_SHARE)) if memory_mb > 1024 else None,
        "signal_delay_s": max(10, min(DEFAULT_LEAD_S, longest * 60 // 8)),
        "array_parallelism": max(
            1, min(32, sum(kind.usable for part in parts for kind in part.described))
        ),
    }
    return {key: value for key, value in content.items() if value is not None or key == "account"}


def choose_partitions(facts: SlurmFacts, partition: str | None) -> list[Partition]:
    """The partitions that a profile is written for: those of this list, else one.

    Raises:
        ConfigError: there is none that is up, or none of a name.
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
            f"no partition takes jobs now (there are {names}): try later, or give --partition"
        )
    return [
        max(
            up,
            key=lambda part: (part.gpus > 0, part.is_default, part.usable, part.max_min or 10**9),
        )
    ]


def _notes(profile: ClusterProfile) -> dict[str, str]:
    many = (
        "several may be charged: `sacctmgr show assoc user=$USER`"
        if profile.account is None
        else "pays"
    )
    return {
        "account": many,
        "nodes": "of a run whose grid does not say",
        "processes_per_node": "ranks: one per GPU",
        "signal_delay_s": "ranks are told to save so long before the time limit",
        "array_parallelism": "runs at the same time",
    }
