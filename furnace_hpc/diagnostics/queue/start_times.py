"""Compare when a run would start: in each partition, and with the same GPUs on more or fewer nodes.

`sbatch --test-only` asks Slurm and submits nothing. At most MAX_TESTS questions are asked, several
at a time.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.sbatch_flags import merged
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.diagnostics.partitions import Partition, runs_of_job
from furnace_hpc.diagnostics.report import NAME_WIDTH, Check, Section, fail, ok
from furnace_hpc.diagnostics.slurm_info import SlurmFacts
from furnace_hpc.launch.batch_script import sbatch_flags
from furnace_hpc.launch.planning.plan import Shape
from furnace_hpc.monitor.columns import duration
from furnace_hpc.slurm import client
from furnace_hpc.slurm.client import CommandResult
from furnace_hpc.slurm.sbatch_errors import hint, short
from furnace_hpc.slurm.test_only import read_estimate, refusal

TITLE = "Soonest start"
TIMEOUT_MIN = 60  # time limit of the run that is tested; the default of a grid
MAX_TESTS, AT_A_TIME = 24, 8
PATIENCE_S = 20  # for all answers
SOON_S = 60  # Slurm plans in such steps: earlier is `now`
KEYS = ("partition", "nodes", "processes_per_node", "gpus_per_node", "mem_gb")


@dataclass(frozen=True)
class Option:
    """A way to run: the profile, or the profile with another partition or number of nodes."""

    profile: ClusterProfile
    minutes: int = TIMEOUT_MIN

    @property
    def name(self) -> str:
        """Partition, and nodes x ranks."""
        shape = f" {self.profile.nodes} x {self.profile.processes_per_node}"
        return (self.profile.partition or "default")[: NAME_WIDTH - len(shape)] + shape

    @property
    def script(self) -> str:
        """A batch script that asks for what a run would ask for."""
        profile = self.profile
        shape = Shape(
            profile.nodes,
            profile.processes_per_node,
            self.minutes,
            profile.partition,
            merged(profile.sbatch),
            *runs_of_job(profile),
        )
        lines = [f"#SBATCH {flag}" for flag in sbatch_flags(profile, shape)]
        return "\n".join(["#!/bin/sh", *lines, "true", ""])


@dataclass(frozen=True)
class Start:
    """Slurm's answer for one option."""

    option: Option
    answer: CommandResult
    wait_s: float | None  # None if Slurm names no time


def start_section(facts: SlurmFacts, profile: ClusterProfile) -> Section:
    """List when the options would start, and suggest the soonest."""
    found = _ask(list(options(facts, profile))[:MAX_TESTS])
    return Section(TITLE, tuple(describe(found)))


def options(facts: SlurmFacts, profile: ClusterProfile) -> Iterator[Option]:
    """Yield the profile itself, then its partitions and shapes, then other partitions.

    Partitions that are down, or have shorter time limits, are left out. --test-only does not
    always refuse these.
    """
    own, _ = facts.named(profile.partition)
    minutes = min(TIMEOUT_MIN, max((_longest_min(part) for part in own), default=TIMEOUT_MIN))
    yield Option(profile, minutes)
    usable = [part for part in facts.partitions if part.is_up and _longest_min(part) >= minutes]
    pairs = [(part, shape) for part in usable if part in own for shape in _shapes(profile)]
    pairs += [(part, profile) for part in usable if part not in own]
    for part, shape in pairs:
        other = shape
        if profile.partition or not part.is_default:
            other = shape.model_copy(update={"partition": part.name})
        if other != profile and not part.refuses(other):
            yield Option(other, minutes)


def _longest_min(part: Partition) -> int:
    return part.max_min or TIMEOUT_MIN


def _shapes(profile: ClusterProfile) -> Iterator[ClusterProfile]:
    """Yield the profile, then its ranks, GPUs and memory on other numbers of nodes."""
    yield profile
    ranks = profile.nodes * profile.processes_per_node
    gpus = profile.gpus(profile.nodes, profile.processes_per_node)
    for nodes in range(1, ranks + 1):
        if nodes == profile.nodes or ranks % nodes or gpus % nodes:
            continue
        changes = {"nodes": nodes, "processes_per_node": ranks // nodes}
        if profile.gpus_per_node is not None:
            changes["gpus_per_node"] = gpus // nodes
        if profile.mem_gb:
            changes["mem_gb"] = -(-profile.mem_gb * profile.nodes // nodes)
        yield profile.model_copy(update=changes)


def _ask(wanted: list[Option]) -> list[Start]:
    """Ask Slurm about all options. Those without an answer in time are left out."""
    pool = ThreadPoolExecutor(AT_A_TIME)
    futures = {pool.submit(client.test_only, option.script): option for option in wanted}
    done, _ = wait(futures, PATIENCE_S)
    pool.shutdown(wait=False, cancel_futures=True)
    now_s = time.time()
    return [
        Start(option, future.result(), _wait_s(future.result(), now_s))
        for future, option in futures.items()
        if future in done
    ]


def _wait_s(answer: CommandResult, now_s: float) -> float | None:
    estimate = read_estimate(answer.error)
    if estimate is None:
        return None
    return max(0.0, datetime.fromisoformat(estimate.start).timestamp() - now_s)


def describe(found: list[Start]) -> list[Check]:
    """Return a line for each option, the soonest first, and the suggestion."""
    if not found:
        return [ok("not known", f"sbatch --test-only did not answer in {PATIENCE_S} s")]
    own = found[0]
    timed = sorted((start for start in found if start.wait_s is not None), key=_order)
    checks = [ok(start.option.name, _when(start)) for start in timed]
    for start in found:
        if start.wait_s is not None:
            continue
        name, words = start.option.name, short(start.answer.error)
        profile = start.option.profile
        is_refused = start is own and refusal(start.answer, profile.partition, profile.nodes)
        checks.append(fail(name, words, hint(words)) if is_refused else ok(name, words))
    if timed:
        checks.append(ok("suggestion", _suggestion(timed[0], own)))
    return checks


def _order(start: Start) -> float:
    """Starts within a minute are equal. Then the order of the options counts."""
    return (start.wait_s or 0.0) // SOON_S


def _when(start: Start) -> str:
    estimate = read_estimate(start.answer.error)
    nodes = estimate.nodes if estimate else ""
    wait_s = start.wait_s or 0.0
    when = "now" if wait_s < SOON_S else f"in {duration(wait_s)}"
    return f"{when}, on {nodes}"


def _suggestion(best: Start, own: Start) -> str:
    run = f"a run of {counted(own.option.minutes, 'minute')}"
    if best is own:
        return f"{run} starts soonest with the profile as it is"
    sooner = "has no start time with the profile as it is, but one"
    if own.wait_s is not None:
        sooner = f"starts {duration(own.wait_s - (best.wait_s or 0.0))} sooner"
    before, after = own.option.profile, best.option.profile
    keys = [key for key in KEYS if getattr(after, key) != getattr(before, key)]
    changes = ", ".join(f"{key}: {getattr(after, key)}" for key in keys)
    place = "the profile, or in resources of the grid"
    if not set(keys) <= Resources.model_fields.keys():
        place = "the profile"
    return f"{run} {sooner} with {changes}. Set this in {place}"
