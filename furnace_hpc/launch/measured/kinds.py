"""Runs of one kind: the same shape of job, and configs that cost the same."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.launch.planning.plan import PlannedRun
from furnace_hpc.launch.planning.shared_nodes import runs_per_gpu, runs_per_node
from furnace_hpc.runs.records.attempts import Attempt

# Keys that change how long a run is or what it learns, and not what a step costs.
LENGTH = ("seed", "pack_seed", "steps", "epochs", "early_stopping", "init_from", "schedule")
WRITES = ("log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "hang_timeout_s")
OF_EVALUATION = ("frames", "extra", "batch_size")  # the keys of `evaluation` that decide its cost


class Kind(NamedTuple):
    """What decides the cost of a run."""

    nodes: int
    processes_per_node: int
    partition: str | None
    config: str  # JSON of the keys that decide the cost
    runs_per_node: int = 1  # neighbours on a node cost time
    runs_per_gpu: int = 1

    def has_measured(self, attempt: Attempt, profile: ClusterProfile) -> bool:
        """Whether an attempt ran on such a job there. It is one of a run with this config."""
        on_slurm = profile.executor == "slurm"
        clusters = {attempt.cluster, profile.cluster_name} - {"", None}
        return (
            attempt.world_size == self.nodes * self.processes_per_node
            and attempt.nodes in (None, self.nodes)
            and attempt.runs_per_node == self.runs_per_node
            and attempt.runs_per_gpu == self.runs_per_gpu
            and bool(attempt.job_id) == on_slurm
            and (not on_slurm or attempt.partition == self.partition)
            and len(clusters) < 2
        )


def kinds_of(runs: Sequence[PlannedRun], profile: ClusterProfile) -> dict[Kind, list[int]]:
    """Kind -> indices of its runs."""
    found: dict[Kind, list[int]] = {}
    known: dict[tuple[str, str], str] = {}  # runs of a row on one data set differ in the seed alone
    for index, run in enumerate(runs):
        config = run.spec.config
        name = (run.spec.variant, config.data.name)
        if name not in known:
            known[name] = cost_key(config)
        kind = Kind(
            run.shape.nodes,
            run.shape.processes_per_node,
            run.shape.partition or profile.partition,
            known[name],
            run.shape.runs_per_node,
            run.shape.runs_per_gpu,
        )
        found.setdefault(kind, []).append(index)
    return found


def kind_of(spec: RunSpec, profile: ClusterProfile) -> Kind:
    """The kind of a run that is not planned."""
    nodes, per_node = profile.shape(spec.resources)
    partition = spec.resources.partition or profile.partition
    shared = runs_per_node(profile, spec.resources), runs_per_gpu(profile, spec.resources)
    return Kind(nodes, per_node, partition, cost_key(spec.config), *shared)


def cost_key(config: TrainConfig) -> str:
    """The keys of a config that decide what a step and an evaluation cost, as JSON.

    Weights of loss terms count as on or off. Rates, dropouts and lengths do not count.
    """
    content = config.model_dump(mode="json")
    for key in (*LENGTH, *WRITES):
        del content[key]
    content["optimizer"] = config.optimizer.name
    content["ema"] = config.ema is not None
    content["tasks"] = [(task.name, task.kind) for task in config.tasks]
    content["evaluation"] = {key: content["evaluation"][key] for key in OF_EVALUATION}
    content["loss"] = _on_or_off(content["loss"])
    content["model"] = _without_dropout(content["model"])
    if config.pack_seed is not None:  # packs are drawn from one set
        del content["data"]["name"]
    return json.dumps(content, sort_keys=True)


def _on_or_off(loss: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in loss.items():
        found[key] = bool(value) if isinstance(value, float) else value
    found["extra"] = sorted(loss["extra"])
    return found


def _without_dropout(content: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in content.items():
        if not key.endswith("dropout"):
            found[key] = _without_dropout(value) if isinstance(value, dict) else value
    return found
