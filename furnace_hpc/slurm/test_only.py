"""Read the answer of `sbatch --test-only`: whether Slurm takes a job, and when it would start."""

import re
import time
from typing import NamedTuple

from furnace_hpc.slurm import client
from furnace_hpc.slurm.client import CommandResult
from furnace_hpc.slurm.sbatch_errors import is_away, is_doubtful, short

# Slurm 26.05 prints "at 2026-11-29T10:29:12 a using 4 processors".
_STARTS = re.compile(
    r"Job [0-9]+ to start at (?P<start>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8})(?: on cluster \S+| a)?"
    r" using [0-9]+ processors on (?:nodes )?(?P<nodes>\S+)(?: in partition (?P<partition>\S+))?"
)
# Temporary states: sbatch accepts the job, and it waits.
_TEMPORARY = re.compile(
    r"nodes are busy|node not available|partition not available|reservation not usable now|"
    r"reservation is in use|resources currently not available|held state|dependency problem",
    re.IGNORECASE,
)
# Slurm says this of a partition that is down, and of jobs that break the partition's limits.
_PARTITION = "partition configuration not available"
# Slurm says this of jobs that no node can take, and if too few nodes are up.
_NODES = "node configuration is not available"


_REGISTERED_S = 5.0  # after a start of the controller, nodes are unknown to it for a moment


def ask(script: str) -> CommandResult:
    """Run `sbatch --test-only` with a batch script. If no node can take the job, ask once more."""
    answer = client.test_only(script)
    if answer.ok or _NODES not in answer.error:
        return answer
    time.sleep(_REGISTERED_S)
    return client.test_only(script)


class Estimate(NamedTuple):
    """When and where a job would start."""

    start: str  # local time, 2026-11-29T02:30:00
    nodes: str
    partition: str  # empty if Slurm does not name it


def read_estimate(text: str) -> Estimate | None:
    """Read `Job 7 to start at ...`, which sbatch prints on stderr. None if there is none."""
    found = _STARTS.search(text)
    if not found:
        return None
    return Estimate(found["start"], found["nodes"], found["partition"] or "")


def refusal(answer: CommandResult, partition: str | None, nodes: int) -> str:
    """Return Slurm's words if it refuses the job for good. Empty if the job may start later.

    Args:
        answer: of `client.test_only`.
        partition: those of the job. None is the default one.
        nodes: number of nodes of the job.
    """
    words = short(answer.error)
    if words.startswith("sbatch ended with exit code"):  # it was killed, and printed nothing
        return ""
    if answer.ok or read_estimate(words) or is_away(words) or is_doubtful(words):
        return ""
    if _TEMPORARY.search(words):
        return ""
    if _PARTITION in words and not client.is_partition_up(partition):
        return ""
    if _NODES in words and client.lacks_nodes_now(partition, nodes):
        return ""
    return words
