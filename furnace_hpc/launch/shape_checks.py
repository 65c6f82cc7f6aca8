"""Check what the jobs of a plan ask for, before anything is submitted.

Many sites accept a job that can never start (EnforcePartLimits=NO). `sbatch --test-only` refuses
most of them.
"""

import os
from collections.abc import Callable, Iterable, Mapping

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.sbatch_flags import OTHERS, OWNED
from furnace_hpc.launch.arrays import Array
from furnace_hpc.launch.grids.messages import show_message
from furnace_hpc.launch.planning.plan import Shape
from furnace_hpc.slurm import client
from furnace_hpc.slurm.client import CommandResult
from furnace_hpc.slurm.environment import dropped_defaults
from furnace_hpc.slurm.sbatch_errors import hint
from furnace_hpc.slurm.test_only import refusal

AT_A_TIME = 8  # calls of sbatch --test-only; each takes as long as a submission
# Flags with which a job gets whole cores, or the whole node.
WHOLE_CORES = {("hint", "nomultithread"), ("threads-per-core", "1"), ("exclusive", "")}

Shapes = Mapping[Shape, list[int]]


def check_flag_names(shapes: Iterable[Shape]) -> None:
    """Raise ConfigError if this machine's sbatch lacks a flag. Without sbatch none is wrong.

    Flags of sbatch's manual are left to Slurm, because `sbatch --help` does not list all of them.
    """
    names = {name for shape in shapes for name, _ in shape.sbatch} - OTHERS
    if not names or not client.has_slurm():
        return
    listed = client.sbatch_options()
    if not listed:
        return
    for name in sorted(names - listed):
        known = (listed | OTHERS) - OWNED.keys()
        raise ConfigError(f"sbatch.{name}: sbatch has no option --{name}; {nearest(name, known)}")


def note_dropped_variables() -> None:
    """Print the user's defaults for sbatch, such as SBATCH_ACCOUNT. Jobs do not get them."""
    if names := dropped_defaults(os.environ):
        show_message(
            f"jobs do not get {', '.join(names)}: set keys of the cluster profile instead",
            on_stderr=True,
        )


def note_shared_cores(shapes: Iterable[Shape], profile: ClusterProfile) -> None:
    """Print a line if runs of a job need parts of cores. Slurm gives a core to one step only.

    So some runs of the job would wait until others have ended.
    """
    threads: dict[str | None, int] = {}
    for shape in shapes:
        cpus = (profile.cpus_per_task or 1) * shape.processes_per_node
        has_own = WHOLE_CORES & set(shape.sbatch) or "cpus-per-gpu" in dict(shape.sbatch)
        if shape.runs_per_node == 1 or shape.runs_per_gpu > 1 or has_own or not client.has_slurm():
            continue
        partition = shape.partition or profile.partition
        if partition not in threads:
            threads[partition] = client.threads_per_core(partition)
        number = threads[partition]
        if cpus % number:
            show_message(
                f"a core has {number} CPUs here, and each of {shape.runs_per_node} runs of a job "
                f"asks for {counted(cpus, 'CPU')}. Two runs cannot share a core, so some wait for "
                f"others: set cpus_per_task to a multiple of {number}",
                on_stderr=True,
            )
            return


def try_shapes(
    shapes: Shapes, test: Callable[[Array], CommandResult]
) -> dict[Shape, CommandResult]:
    """Test one run of each shape, several at a time."""
    # the import takes 20 ms, which `--help` must not wait for
    from concurrent.futures import ThreadPoolExecutor

    arrays = [Array(shape, rows[0], (rows[0],)) for shape, rows in shapes.items()]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return dict(zip(shapes, pool.map(test, arrays), strict=True))


def find_refused(
    shapes: Shapes, answers: Mapping[Shape, CommandResult], profile: ClusterProfile
) -> list[str]:
    """Return a line for each shape whose jobs would never start, or be refused."""
    lines = []
    for shape, answer in answers.items():
        partition = shape.partition or profile.partition
        problem = _above_time_limit(shape, partition, profile)
        if not problem and (words := refusal(answer, partition, shape.nodes)):
            runs = counted(len(shapes[shape]), "run")
            problem = f"sbatch would refuse {runs} of {shape}: {words}: {hint(words)}"
        lines += [problem] * bool(problem)
    return lines


def _above_time_limit(shape: Shape, partition: str | None, profile: ClusterProfile) -> str:
    longest = client.time_limit_min(partition, profile.account, profile.qos)
    if not longest or shape.timeout_min <= longest:
        return ""
    name = f"partition {partition}" if partition else "the default partition"
    return (
        f"resources.timeout_min {shape.timeout_min} is more than {name} allows ({longest}): "
        f"such a job would never start. Use at most {longest}; runs resume after a requeue"
    )
