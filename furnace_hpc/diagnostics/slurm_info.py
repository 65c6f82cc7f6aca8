"""Read Slurm's settings, partitions, nodes and accounts. Each command runs once."""

import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.diagnostics.node import with_gres
from furnace_hpc.diagnostics.partitions import Partition, node_kinds
from furnace_hpc.slurm import client
from furnace_hpc.slurm.gres import gpus
from furnace_hpc.slurm.parsing import PLAIN, is_usable, parse_count, parse_minutes, read_table
from furnace_hpc.slurm.test_only import refusal

COMMANDS = {
    "version": ("sinfo", "--version"),
    "partitions": ("scontrol", "show", "partition", "--oneliner"),
    "nodes": ("sinfo", "--noheader", "--Node", "--format=%N|%P|%t|%c|%m|%G"),
    "associations": ("sacctmgr", "show", "assoc", "--noheader", "--parsable2"),
    "srun": ("srun", "--help"),
}
ASSOCIATION = "Account,Partition,QOS,DefaultQOS,MaxJobs,MaxSubmitJobs,GrpSubmitJobs"
ASSOCIATED = (PLAIN,) * 7
NODE = (r"[^|]+", r"[^|]+", r"[A-Za-z]\S*", r"[0-9]+\+?", r"[0-9]+\+?", PLAIN)
NONE = {"", "(null)", "none", "n/a"}


@dataclass(frozen=True)
class Association:
    """One account that this user may charge."""

    account: str
    max_submit: int | None


@dataclass(frozen=True)
class SlurmFacts:
    """Slurm's settings, partitions and accounts."""

    version: tuple[int, int]
    config: dict[str, str]
    partitions: tuple[Partition, ...]
    associations: tuple[Association, ...] = ()
    submit_limit: int | None = None
    has_pyxis: bool = False
    # sbatch flag for GPUs -> problem by `sbatch --test-only`; empty if it is accepted
    gpu_flags: dict[str, str] = field(default_factory=dict)
    # output lines that cannot be read, such as a banner
    unread: tuple[str, ...] = ()

    def named(self, names: str | None) -> tuple[list[Partition], list[str]]:
        """Find the partitions of a comma-separated list, and its unknown names.

        An empty list means the default partition.
        """
        stripped = [name.strip() for name in (names or "").split(",")]
        wanted = list(dict.fromkeys(filter(None, stripped)))
        if not wanted:
            return [part for part in self.partitions if part.is_default][:1], []
        known = {part.name: part for part in self.partitions}
        found = [known[name] for name in wanted if name in known]
        return found, [name for name in wanted if name not in known]


def ask(account: str | None = None, qos: str | None = None) -> SlurmFacts | None:
    """Run all commands at the same time. None if the controller does not answer."""
    config = client.configuration()
    if not config:
        return None
    commands = dict(COMMANDS)
    commands["associations"] += (*client.own_associations(), f"format={ASSOCIATION}")
    with ThreadPoolExecutor(len(commands) + 1) as pool:
        limit = pool.submit(client.submit_limit, account, qos)
        outputs = pool.map(lambda command: _output(*command), commands.values())
        text = dict(zip(commands, outputs, strict=True))
        submit_limit = limit.result()
    return SlurmFacts(
        read_version(text["version"]),
        config,
        read_partitions(text["partitions"], text["nodes"]),
        read_associations(text["associations"]),
        submit_limit,
        "--container-image" in text["srun"],
        unread=(
            *read_table(text["nodes"], NODE).others,
            *_other_lines(text["partitions"]),
            *read_table(text["associations"], ASSOCIATED).others,
        ),
    )


def try_gpu_flags(partition: str, gpus: int, gpu_type: str, site: Sequence[str]) -> dict[str, str]:
    """Try each sbatch flag for GPUs with --test-only. Returns the problem of each flag.

    Args:
        partition: one, or several.
        gpus: GPUs of a node.
        gpu_type: their type. Empty if Slurm names none.
        site: other flags of sbatch, without which the site may refuse every job.
    """
    prefix = gpu_type and f"{gpu_type}:"
    others = [f"--partition={partition}", "--ntasks=1", "--time=1", *site]
    flags = {
        "gpus_per_node": [*others, f"--gpus-per-node={prefix}{gpus}"],
        "gres": with_gres(others, f"gpu:{prefix}{gpus}"),
        "gpus_per_task": [*others, f"--gpus-per-task={prefix}1"],
    }
    scripts = [
        "".join(["#!/bin/sh\n", *(f"#SBATCH {shlex.quote(word)}\n" for word in words), "true\n"])
        for words in flags.values()
    ]
    with ThreadPoolExecutor(len(flags)) as pool:
        answers = pool.map(client.test_only, scripts)
    return {
        flag: refusal(answer, partition, 1) for flag, answer in zip(flags, answers, strict=True)
    }


def read_version(text: str) -> tuple[int, int]:
    """Read `slurm 23.11.4` or `slurm-wlm 22.05.8`. (0, 0) for other text."""
    found = re.search(r"slurm\S* +([0-9]{1,4})\.([0-9]{1,4})", text)
    if not found:
        return 0, 0
    return int(found[1]), int(found[2])


def read_partitions(partitions: str, nodes: str) -> tuple[Partition, ...]:
    """Read partitions and their nodes.

    Args:
        partitions: output of `scontrol show partition --oneliner`.
        nodes: output of `sinfo --Node` with the fields name, partition, state, cores, MB, GRES.
    """
    rows = read_table(nodes, NODE).rows
    found = []
    for line in partitions.split("\n"):
        pairs = dict(re.findall(r"(\w+)=(\S*)", line))
        name = pairs.get("PartitionName")
        if not name:
            continue
        kinds = node_kinds(
            (
                is_usable(state),
                parse_count(cpus) or 0,
                parse_count(memory) or 0,
                gpus(gres),
            )
            for _, partition, state, cpus, memory, gres in rows
            if partition.removesuffix("*") == name
        )
        part = Partition(
            name,
            is_default=pairs.get("Default") == "YES",
            is_up=pairs.get("State") == "UP",
            max_min=parse_minutes(pairs.get("MaxTime", "")),
            grace_s=parse_count(pairs.get("GraceTime", "")) or 0,
            preempt_mode=pairs.get("PreemptMode", ""),
            kinds=kinds,
        )
        found.append(part)
    return tuple(found)


def _other_lines(partitions: str) -> list[str]:
    lines = [line for line in partitions.split("\n") if line.strip()]
    return [line for line in lines if "PartitionName=" not in line]


def read_associations(text: str) -> tuple[Association, ...]:
    """Read `sacctmgr show assoc` with the fields of ASSOCIATION."""
    found = []
    for account, *_, most, most_of_group in read_table(text, ASSOCIATED).rows:
        limits = [limit for limit in map(parse_count, (most, most_of_group)) if limit is not None]
        found.append(Association(account, min(limits, default=None)))
    return tuple(found)


def _output(*command: str) -> str:
    """The command's output. Empty if it fails."""
    try:
        return client.run_checked(*command)
    except UnavailableError:
        return ""
