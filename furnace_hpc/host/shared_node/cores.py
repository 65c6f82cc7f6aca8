"""Divide a job's cores among runs whose job steps overlap: each step has all of them.

Standard library only, syntax of Python 3.6.
"""

import os
from typing import Iterable, List, Mapping, Sequence

SIBLINGS = "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list"


def read_ranges(text: str) -> List[int]:
    """CPUs written as 0-3,8."""
    found: List[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def cores_of(usable: Iterable[int], siblings: str = SIBLINGS) -> List[List[int]]:
    """The CPUs of each core, of those that are usable."""
    left, cores = sorted(usable), []
    while left:
        try:
            with open(siblings % left[0]) as file:
                threads = read_ranges(file.read())
        except (OSError, ValueError):  # /sys is hidden
            threads = []
        core = [cpu for cpu in left if cpu in threads or cpu == left[0]]
        cores.append(core)
        left = [cpu for cpu in left if cpu not in core]
    return cores


def divide(cores: Sequence[Sequence[int]], parts: int) -> List[str]:
    """The CPUs of each part, as 0,1. Parts have whole cores if there are enough.

    Empty if there are fewer CPUs than parts.
    """
    units = [list(core) for core in cores]
    if len(units) < parts:
        units = [[cpu] for core in units for cpu in core]
    if len(units) < parts:
        return []
    ends = [len(units) * part // parts for part in range(parts + 1)]
    found = [units[first:last] for first, last in zip(ends, ends[1:])]
    return [",".join(str(cpu) for unit in part for cpu in unit) for part in found]


def cores_of_places(places: int, environment: Mapping[str, str]) -> List[str]:
    """The CPUs of each part of this job. Empty if Slurm does not keep the job on its cores."""
    usable = os.sched_getaffinity(0)
    given = environment.get("SLURM_CPUS_ON_NODE", "")
    if not given.isdigit() or len(usable) > int(given):
        return []  # the kernel balances the load of all jobs of the node
    cores = cores_of(usable)
    if environment.get("SLURM_HINT") == "nomultithread":
        cores = [core[:1] for core in cores]
    return divide(cores, places)
