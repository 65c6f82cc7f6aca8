"""Exclude nodes with repeated hardware or launch failures from the runs of a grid."""

from collections import Counter
from collections.abc import Iterable

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.runs.records.attempts import Attempt, AttemptHistory
from furnace_hpc.slurm.nodelist import node_names

NODE_FAILURES = ("node_fail", "hang", "infrastructure", "gpu")  # reasons that a bad node can cause


def excluded_nodes(histories: Iterable[AttemptHistory], profile: ClusterProfile) -> tuple[str, ...]:
    """Return this cluster's nodes that failed too often. Empty if the profile excludes none."""
    if profile.executor != "slurm" or profile.exclude_after_failures is None:
        return ()
    attempts = [attempt for history in histories for attempt in history.attempts]
    here = [attempt for attempt in attempts if _is_on(attempt, profile)]
    return failing_nodes(here, profile.exclude_after_failures)


def failing_nodes(attempts: Iterable[Attempt], after: int) -> tuple[str, ...]:
    """Return the nodes on which at least `after` attempts failed for a reason of the node.

    A hang or a broken GPU counts for the nodes where it was seen. Other failures count for all
    nodes of the job. Runs that share a node end together when it fails, so they count once.
    If most nodes look bad, the cause is elsewhere, and none is returned. Most means more than half
    of all nodes seen and more than the largest job has.
    """
    failures: Counter[str] = Counter()
    shared = set[tuple[str, str]]()
    seen, largest = set[str](), 0
    for attempt in attempts:
        nodes = set(node_names(attempt.nodelist))
        seen |= nodes
        largest = max(largest, len(nodes))
        if attempt.reason not in NODE_FAILURES:
            continue
        # Runs that share a node have the same holder, once per start of their job.
        start = str(attempt.holder), attempt.reason
        if attempt.runs_per_node == 1 or start not in shared:
            shared.add(start)
            failures.update(nodes & set(attempt.blamed) or nodes)
    failing = tuple(sorted(node for node, number in failures.items() if number >= after))
    if len(failing) > max(largest, len(seen) // 2):
        return ()
    return failing


def _is_on(attempt: Attempt, profile: ClusterProfile) -> bool:
    """Return whether an attempt ran on the profile's cluster, or may have."""
    names = {attempt.cluster, profile.cluster_name} - {"", None}
    return len(names) < 2
