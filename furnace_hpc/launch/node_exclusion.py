"""Nodes that get no more runs of a grid, since its attempts ended there again and again by no fault of their own."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.attempts import Attempt, read_attempts

_RANGES = r"\[[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*\]"
_LIST = rf"([\w.-]|{_RANGES})+(,([\w.-]|{_RANGES})+)*"
_MOST_NODES = 100_000
OF_A_NODE = ("node_fail", "hang", "infrastructure")  # reasons that may be a node's fault


def excluded_nodes(runs: Iterable[RunFolder], profile: ClusterProfile) -> tuple[str, ...]:
    """The lemons among the nodes that these runs were on, on this cluster; none where the profile excludes none."""
    if profile.executor != "slurm" or profile.exclude_after_failures is None:
        return ()
    attempts = (attempt for run in runs for attempt in read_attempts(run))
    here = [
        a
        for a in attempts
        if not (a.cluster and profile.cluster_name) or a.cluster == profile.cluster_name
    ]
    return lemons(here, profile.exclude_after_failures)


def lemons(attempts: Iterable[Attempt], after: int) -> tuple[str, ...]:
    """Nodes on which so many attempts hung, never started, or that failed so often.

    Of several nodes those are blamed that a hang was seen on; else each counts. More than half of all nodes that were
    seen, and more than one job has, are hardly lemons: then something else is wrong, and none is told.
    """
    failures: Counter[str] = Counter()
    seen, largest = set[str](), 0
    for attempt in attempts:
        nodes = node_names(attempt.nodelist)
        seen.update(nodes)
        largest = max(largest, len(nodes))
        if attempt.reason in OF_A_NODE:
            failures.update(set(attempt.blamed) & set(nodes) or set(nodes))
    found = tuple(sorted(node for node, number in failures.items() if number >= after))
    return found if len(found) <= max(largest, len(seen) // 2) else ()


def node_names(nodelist: str) -> list[str]:
    """The nodes of a list as Slurm writes it: `a[1-3,07],b2` or `r[1-2]n[0-1]`; none where it cannot be read."""
    if nodelist.strip() in ("", "None assigned", "(null)", "None", "n/a") or not re.fullmatch(
        _LIST, nodelist.strip()
    ):
        return []
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip()):
        pieces = [
            _numbers(text[1:-1]) if text[0] == "[" else [text]
            for text in re.findall(r"\[[^\]]*\]|[^\[]+", part)
        ]
        if len(found) + math.prod(map(len, pieces)) > _MOST_NODES:
            return []
        found += ["".join(chosen) for chosen in itertools.product(*pieces)]
    return found


def _numbers(ranges: str) -> list[str]:
    found: list[str] = []
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        last_number = min(int(last or first), int(first) + _MOST_NODES)
        found += [str(n).zfill(len(first)) for n in range(int(first), last_number + 1)]
    return found
