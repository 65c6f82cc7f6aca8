"""What Slurm says of itself: its commands' outputs, parsed. Asked once each; what does not answer is empty."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from furnace_hpc.cluster import scheduler
from furnace_hpc.spec.errors import UnavailableError

COMMANDS = {
    "version": ("sinfo", "--version"),
    "partitions": ("scontrol", "show", "partition", "--oneliner"),
    "nodes": ("sinfo", "--noheader", "--Node", "--format=%N|%P|%t|%c|%m|%G"),
    "associations": ("sacctmgr", "show", "assoc", "--noheader", "--parsable2"),
    "qualities": ("sacctmgr", "show", "qos", "--noheader", "--parsable2"),
    "srun": ("srun", "--help"),
}
ASSOCIATION = "Account,Partition,QOS,DefaultQOS,MaxJobs,MaxSubmitJobs,GrpSubmitJobs"
QUALITY = "Name,MaxSubmitJobsPerUser,GrpSubmitJobs,PreemptMode,GraceTime"
NONE = {"", "(null)", "none", "n/a"}


@dataclass(frozen=True)
class Partition:
    """One partition, and the smallest of its nodes."""

    name: str
    is_default: bool
    is_up: bool
    max_min: int | None
    grace_s: int
    preempt_mode: str
    nodes: int
    cpus: int = 0
    memory_mb: int = 0
    gpus: int = 0
    gpu_type: str = ""
    usable: int = 0
    """Nodes that take jobs now, or will when their jobs end."""


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

    def partition(self, name: str | None) -> Partition | None:
        """The partition of this name, or the default one; of several names the first."""
        wanted = (name or "").partition(",")[0]
        return next((p for p in self.partitions if (p.name == wanted if wanted else p.is_default)), None)


def ask(account: str | None = None, qos: str | None = None) -> SlurmFacts | None:
    """Ask everything at once; None when the controller does not answer."""
    if not (config := scheduler.configuration()):
        return None
    user = scheduler.user_name()
    more = {"associations": (f"user={user}", f"format={ASSOCIATION}"), "qualities": (f"format={QUALITY}",)}
    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        said = {name: pool.submit(_said, *command, *more.get(name, ())) for name, command in COMMANDS.items()}
        limit = pool.submit(scheduler.submit_limit, account, qos)
        text = {name: answer.result() for name, answer in said.items()}
        partitions = read_partitions(text["partitions"], text["nodes"])
        facts = SlurmFacts(
            read_version(text["version"]),
            config,
            partitions,
            read_associations(text["associations"]),
            limit.result(),
            "--container-image" in text["srun"],
        )
    return facts


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
        answers = {way: pool.submit(scheduler.test_only, f"{head}#SBATCH {flag}\ntrue\n") for way, flag in ways.items()}
    return {way: "" if (said := answer.result()).ok else said.error for way, answer in answers.items()}


def read_version(text: str) -> tuple[int, int]:
    """`slurm 23.11.4`, `slurm-wlm 22.05.8`."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def read_partitions(partitions: str, nodes: str) -> tuple[Partition, ...]:
    """Of `scontrol show partition --oneliner`, and `sinfo --Node` of name|partition|state|cpus|memory|gres."""
    rows = [fields for line in nodes.splitlines() if len(fields := line.strip().split("|")) == 6]
    found = []
    for line in partitions.splitlines():
        pairs = dict(re.findall(r"(\w+)=(\S*)", line))
        if not (name := pairs.get("PartitionName")):
            continue
        mine = [fields for fields in rows if fields[1].rstrip("*") == name]
        gpus = [read_gpus(fields[5]) for fields in mine]
        count, kind = min(gpus, default=(0, ""))
        found.append(
            Partition(
                name,
                pairs.get("Default") == "YES",
                pairs.get("State") == "UP",
                minutes(pairs.get("MaxTime", "")),
                int(pairs.get("GraceTime", "0")) if pairs.get("GraceTime", "0").isdigit() else 0,
                pairs.get("PreemptMode", ""),
                len(mine),
                min((int(re.sub(r"\D", "", fields[3]) or 0) for fields in mine), default=0),
                min((int(re.sub(r"\D", "", fields[4]) or 0) for fields in mine), default=0),
                count,
                kind,
                sum(not re.match(r"(down|drain|drng|fail|maint|boot|unk)", fields[2]) for fields in mine),
            )
        )
    return tuple(found)


def read_gpus(gres: str) -> tuple[int, str]:
    """(number, type) of `gpu:a100:4(S:0-1)`; with several types the first's, and no type where there is none."""
    found = re.search(r"(?:^|,)gpu:(?:([A-Za-z][\w.-]*):)?(\d+)", gres)
    return (int(found[2]), found[1] or "") if found else (0, "")


def read_associations(text: str) -> tuple[Association, ...]:
    """Of `sacctmgr show assoc` with ASSOCIATION's fields."""
    rows = [fields for line in text.splitlines() if len(fields := line.split("|")) == 7]
    limits = [[int(value) for value in fields[5:7] if value.isdigit()] for fields in rows]
    return tuple(Association(fields[0], min(of, default=None)) for fields, of in zip(rows, limits, strict=True))


def minutes(text: str) -> int | None:
    """`7-00:00:00` or `00:05:00` in minutes; None for UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    return (int(found[1] or 0) * 24 + int(found[2])) * 60 + int(found[3]) if found else None


def _said(*command: str) -> str:
    try:
        return scheduler.act(*command)
    except UnavailableError:
        return ""
