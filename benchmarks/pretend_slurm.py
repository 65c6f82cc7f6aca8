"""Slurm's commands as scripts: they count their calls, and answer from files at once.

`install` writes them into a folder for the front of PATH. sbatch accepts every job, squeue prints
the jobs of `write_queue` in the format that it is asked for, and the other commands know nothing.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# A line of the file `queue` has the values of these letters, separated by tabs.
SQUEUE = r"""for word; do
    case $word in --format=*) format=${{word#--format=}} ;; esac
done
awk -F '\t' -v format="$format" '
    BEGIN {{
        split("F K T r S P j", letters, " ")
        for (at in letters) column[letters[at]] = at
        count = split(format, part, "%")
    }}
    {{
        line = part[1]
        for (at = 2; at <= count; at++)
            line = line $(column[substr(part[at], 1, 1)]) substr(part[at], 2)
        print line
    }}' {place}/queue
"""


class QueuedJob(NamedTuple):
    """A job as squeue lists it. The fields are in the order of the file `queue`."""

    array: str
    index: str  # N/A if it is no array
    state: str
    reason: str
    name: str


def write_queue(place: Path, jobs: Iterable[QueuedJob]) -> None:
    """Let squeue list these jobs."""
    lines = ["\t".join((*job[:4], "N/A", "dev", job.name)) + "\n" for job in jobs]
    (place / "queue").write_text("".join(lines))


COMMANDS = {
    "sbatch": "sleep {latency_s}; n=$(cat {place}/next); echo $((n + 1)) > {place}/next\n"
    'echo "Submitted batch job $n"',
    "squeue": SQUEUE,
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
