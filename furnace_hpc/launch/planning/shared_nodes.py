"""Decide how many runs share a node and a GPU, and what each of them gets."""

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
    nodes, ranks = profile.shape(resources)
    per_gpu = _usable_per_gpu(profile, resources)
    asked = resources.runs_per_node or profile.runs_per_node or ("auto" if per_gpu > 1 else None)
    if asked is None or nodes > 1 or profile.executor == "local":
        return 1
    gpus = profile.gpus_per_node
    if per_gpu > 1 and not gpus:
        return per_gpu if asked == "auto" else asked  # of a job that requests as many as they need
    if asked == "auto":
        if not gpus:
            raise ConfigError(
                f"runs_per_node auto divides the GPUs of a node, and cluster {profile.name!r} has "
                f"gpus_per_node {gpus}: set gpus_per_node in the profile, or give runs_per_node as "
                f"a number"
            )
        return max(1, gpus // ranks) * per_gpu
    if gpus and asked > 1 and asked * ranks > gpus * per_gpu:
        shared = f" and runs_per_gpu {per_gpu}" if per_gpu > 1 else ""
        raise ConfigError(
            f"runs_per_node {asked} with {counted(ranks, 'rank')} per run{shared} needs "
            f"{-(-asked * ranks // per_gpu)} GPUs, and cluster {profile.name!r} has gpus_per_node "
            f"{gpus}: use at most {max(1, gpus // ranks) * per_gpu}"
        )
    return asked


def runs_per_gpu(profile: ClusterProfile, resources: Resources) -> int:
    """Return the largest number of runs that use a GPU at the same time.

    In a local queue: the number that was asked for. The queue finds the GPUs later.
    """
    per_gpu = _usable_per_gpu(profile, resources)
    if per_gpu == 1 or profile.executor == "local":
        return per_gpu
    places, gpus = runs_per_node(profile, resources), profile.gpus_per_node
    return -(-places // gpus) if gpus else min(per_gpu, places)


def _usable_per_gpu(profile: ClusterProfile, resources: Resources) -> int:
    """Return what was asked for. 1 for runs of several ranks.

    Their collectives wait for each other on all their GPUs. With MPS two such runs could wait for
    each other without end.
    """
    asked = resources.runs_per_gpu or profile.runs_per_gpu or 1
    nodes, ranks = profile.shape(resources)
    if asked == 1 or nodes * ranks > 1:
        return 1
    has_none = profile.gpus_per_node == 0
    if profile.executor == "slurm" and profile.gpu_flag is None:
        has_none = not profile.gpus_per_node
    if has_none:
        raise ConfigError(
            f"runs_per_gpu {asked} needs GPUs, and cluster {profile.name!r} has gpus_per_node "
            f"{profile.gpus_per_node} and gpu_flag {profile.gpu_flag or 'null'}: set gpus_per_node "
            f"to the GPUs of a node, or remove runs_per_gpu"
        )
    return asked


def gpus_of_run(profile: ClusterProfile, shape: Shape) -> int | float:
    """Return the GPUs of a run on all its nodes: its share of a shared node, or of a shared GPU."""
    total = profile.gpus(shape.nodes, shape.gpus_in_use)
    if shape.runs_per_gpu > 1:
        return total / shape.runs_per_node
    return total // shape.runs_per_node


def local_width(plan: Plan) -> int | None:
    """Return the largest number of runs at a time in a local queue. None: as many as fit."""
    asked = {
        run.spec.resources.runs_per_node or plan.profile.runs_per_node for run in plan.to_do
    } - {None, "auto"}
    return min((number for number in asked if isinstance(number, int)), default=None)


def local_runs_per_gpu(plan: Plan) -> int:
    """Return the number of runs at a time on each GPU of a local queue, which all runs accept."""
    return min((run.attempt.runs_per_gpu for run in plan.to_do), default=1)


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


def on_own_gpus(plan: Plan) -> str:
    """Return a line on runs that share no GPU although they were asked to. Empty if none."""
    alone = sum(
        (run.spec.resources.runs_per_gpu or plan.profile.runs_per_gpu or 1) > 1
        and run.world_size > 1
        for run in plan.to_do
    )
    if not alone:
        return ""
    return f"runs_per_gpu does not apply to {counted(alone, 'run')} of more than one rank"
