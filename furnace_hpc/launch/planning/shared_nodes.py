"""Decide how many runs share a node, and what each of them gets of it."""

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.launch.planning.plan import Plan, Shape


def runs_per_node(profile: ClusterProfile, resources: Resources) -> int:
    """Return the number of runs in one job. 1 for runs of several nodes, and in a local queue.

    Raises:
        ConfigError: `auto` without a number of GPUs, or the node has too few GPUs.
    """
    asked = resources.runs_per_node or profile.runs_per_node
    nodes, ranks = profile.shape(resources)
    if asked is None or nodes > 1 or profile.executor == "local":
        return 1
    gpus = profile.gpus_per_node
    if asked == "auto":
        if not gpus:
            raise ConfigError(
                f"runs_per_node auto divides the GPUs of a node, and cluster {profile.name!r} has "
                f"gpus_per_node {gpus}: set gpus_per_node in the profile, or give runs_per_node as "
                f"a number"
            )
        return max(1, gpus // ranks)
    if gpus and asked > 1 and asked * ranks > gpus:
        raise ConfigError(
            f"runs_per_node {asked} with {counted(ranks, 'rank')} per run needs {asked * ranks} "
            f"GPUs, and cluster {profile.name!r} has gpus_per_node {gpus}: use at most "
            f"{max(1, gpus // ranks)}"
        )
    return asked


def gpus_of_run(profile: ClusterProfile, shape: Shape) -> int:
    """Return the GPUs of a run on all its nodes: its share of a shared node."""
    ranks = shape.processes_per_node * shape.runs_per_node
    return profile.gpus(shape.nodes, ranks) // shape.runs_per_node


def local_width(plan: Plan) -> int | None:
    """Return the largest number of runs at a time in a local queue. None: as many as fit."""
    asked = {
        run.spec.resources.runs_per_node or plan.profile.runs_per_node for run in plan.to_do
    } - {None, "auto"}
    return min((number for number in asked if isinstance(number, int)), default=None)


def unshared(plan: Plan) -> str:
    """Return a line on runs that share no node although they were asked to. Empty if none."""
    alone = sum(
        (run.spec.resources.runs_per_node or plan.profile.runs_per_node or 1) != 1
        and run.shape.nodes > 1
        for run in plan.to_do
    )
    if not alone:
        return ""
    return f"runs_per_node does not apply to {counted(alone, 'run')} of more than one node"
