"""Slurm's commands as scripts: they count their calls, and answer from files at once.

`install` writes them into a folder for the front of PATH. sbatch accepts every job, squeue prints
the file `queue` of that folder, and the other commands know nothing.
"""

import os
from collections import Counter
from pathlib import Path

COMMANDS = {
    "sbatch": "sleep {latency_s}; n=$(cat {place}/next); echo $((n + 1)) > {place}/next\n"
    'echo "Submitted batch job $n"',
    "squeue": "cat {place}/queue",
    "sacct": "",
    "sacctmgr": "",
    "sinfo": "",
    "scontrol": 'echo "ClusterName = pretended"; echo "MaxArraySize = 1000001"',
    "srun": "",
}


def install(place: Path, latency_s: float = 0) -> dict[str, str]:
    """Write the commands. Return the environment in which they are found first."""
    place.mkdir(exist_ok=True)
    (place / "next").write_text("100\n")
    (place / "queue").touch()
    for name, script in COMMANDS.items():
        lines = ["#!/bin/sh", f"echo {name} >> {place}/calls"]
        lines.append(script.format(place=place, latency_s=latency_s))
        (place / name).write_text("\n".join(lines) + "\n")
        (place / name).chmod(0o755)
    return dict(os.environ) | {"PATH": f"{place}:{os.environ['PATH']}"}


def calls(place: Path) -> Counter[str]:
    """Calls of each command since the last time."""
    file = place / "calls"
    found = Counter(file.read_text().split()) if file.exists() else Counter[str]()
    file.unlink(missing_ok=True)
    return found
