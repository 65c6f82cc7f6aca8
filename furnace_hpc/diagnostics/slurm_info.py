"""What Slurm says of itself: its commands' outputs, parsed. Asked once each; what does not answer is empty."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.diagnostics.partitions import Partition, node_kinds
from furnace_hpc.slurm import client
from furnace_hpc.slurm.gres import gpus
from furnace_hpc.slurm.parsing import PLAIN, minutes, read_table, whole

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
_OUT = re.compile(
    r"(down|drain|drng|fail|maint|boot|unk|inval|planned_down|no_respond|future|futr)",
    re.IGNORECASE,
)
NONE = {"", "(null)", "none", "n/a"}


@dataclass(frozen=True)
class Association:
    """One account that this user may charge."""

    account: str
    max_submit: int | None


@dataclass(frozen=True)
class SlurmFacts:
    """All that was learnt."""

    version: tuple[int, int]
    config: dict[str, str]
    partitions: tuple[Partition, ...]
    associations: tuple[Association, ...] = ()
    submit_limit: int | None = None
    has_pyxis: bool = False
    gpu_flags: dict[str, str] = field(default_factory=dict)
    """A way to ask for a GPU -> what `sbatch --test-only` has against it; nothing: it takes it."""
    unread: tuple[str, ...] = ()
    """Lines of the answers that fit nothing, such as a banner."""

    def named(self, names: str | None) -> tuple[list[Partition], list[str]]:
        """The partitions of a comma-separated list, or the default one; and the names that are no partition's."""
        wanted = list(
            dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip())
        )
        if not wanted:
            return [part for part in self.partitions if part.is_default][:1], []
        known = {part.name: part for part in self.partitions}
        return [known[name] for name in wanted if name in known], [
            name for name in wanted if name not in known
        ]


def ask(account: str | None = None, qos: str | None = None) -> SlurmFacts | None:
    """Ask everything at once; None when the controller does not answer."""
    if not (config := client.configuration()):
        return None
    user = client.user_name()
    more = {"associations": (f"user={user}", f"format={ASSOCIATION}")}
    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        said = {
            name: pool.submit(_said, *command, *more.get(name, ()))
            for name, command in COMMANDS.items()
        }
        limit = pool.submit(client.submit_limit, account, qos)
        text = {name: answer.result() for name, answer in said.items()}
        return SlurmFacts(
            read_version(text["version"]),
            config,
            read_partitions(text["partitions"], text["nodes"]),
            read_associations(text["associations"]),
            limit.result(),
            "--container-image" in text["srun"],
            unread=(
                *read_table(text["nodes"], NODE).others,
                *(
                    line
                    for line in text["partitions"].split("\n")
                    if line.strip() and "PartitionName=" not in line
                ),
                *read_table(text["associations"], ASSOCIATED).others,
            ),
        )


def try_gpu_flags(partition: str, gpus: int, gpu_type: str, account: str | None) -> dict[str, str]:
    """What `sbatch --test-only` has against each way to ask for GPUs."""
    typed = f"{gpu_type}:{gpus}" if gpu_type else str(gpus)
    ways = {
        "gpus_per_node": f"--gpus-per-node={typed}",
        "gres": f"--gres=gpu:{typed}",
        "gpus_per_task": f"--gpus-per-task={f'{gpu_type}:1' if gpu_type else '1'}",
    }
    head = f"#!/bin/sh\n#SBATCH --partition={partition}\n#SBATCH --ntasks=1\n#SBATCH --time=1\n"
    head += f"#SBATCH --account={account}\n" if account else ""
    with ThreadPoolExecutor(len(ways)) as pool:
        answers = {
            way: pool.submit(client.test_only, f"{head}#SBATCH {flag}\ntrue\n")
            for way, flag in ways.items()
        }
    return {
        way: "" if (said := answer.result()).ok else said.error for way, answer in answers.items()
    }


def read_version(text: str) -> tuple[int, int]:
    """`slurm 23.11.4`, `slurm-wlm 22.05.8`."""
    found = re.search(r"slurm\S* +([0-9]{1,4})\.([0-9]{1,4})", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def read_partitions(partitions: str, nodes: str) -> tuple[Partition, ...]:
    """Of `scontrol show partition --oneliner`, and `sinfo --Node` of name|partition|state|cpus|memory|gres."""
    rows = read_table(nodes, NODE).rows
    found = []
    for line in partitions.split("\n"):
        pairs = dict(re.findall(r"(\w+)=(\S*)", line))
        if not (name := pairs.get("PartitionName")):
            continue
        mine = [fields for fields in rows if fields[1].removesuffix("*") == name]
        kinds = node_kinds(
            (not _OUT.match(state), whole(cpus) or 0, whole(memory) or 0, gpus(gres))
            for _, _, state, cpus, memory, gres in mine
        )
        grace_s = whole(pairs.get("GraceTime", "")) or 0
        limit, mode = minutes(pairs.get("MaxTime", "")), pairs.get("PreemptMode", "")
        is_up = pairs.get("State") == "UP"
        found.append(
            Partition(name, pairs.get("Default") == "YES", is_up, limit, grace_s, mode, kinds)
        )
    return tuple(found)


def read_gpus(gres: str) -> tuple[int, str]:
    """(number, type) of the GPUs that a node has most of; no type where there is none."""
    kind, number = max(gpus(gres).items(), key=lambda one: one[1], default=("", 0))
    return number, kind


def read_associations(text: str) -> tuple[Association, ...]:
    """Of `sacctmgr show assoc` with ASSOCIATION's fields."""
    rows = read_table(text, ASSOCIATED).rows
    limits = [
        [most for value in fields[5:7] if (most := whole(value)) is not None] for fields in rows
    ]
    return tuple(
        Association(fields[0], min(of, default=None))
        for fields, of in zip(rows, limits, strict=True)
    )


def _said(*command: str) -> str:
    try:
        return client.run_checked(*command)
    except UnavailableError:
        return ""
