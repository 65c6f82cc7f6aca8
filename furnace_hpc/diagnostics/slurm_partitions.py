"""Checks of the partitions that a profile names: Slurm starts a job in the first of them that can take it."""

import re
from collections.abc import Callable
from dataclasses import replace

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics.partitions import Partition
from furnace_hpc.diagnostics.report import Check
from furnace_hpc.diagnostics.slurm_info import NONE, SlurmFacts

ADMIN = "ask the administrators"


def partitions(
    facts: SlurmFacts, parts: list[Partition], missing: list[str], profile: ClusterProfile | None
) -> list[Check]:
    """The partitions are there, one is up, and one has nodes as large as the profile asks."""
    known = ", ".join(p.name for p in facts.partitions)
    if missing:
        found = f"{', '.join(map(repr, missing))} is not there; there are {known}"
        return [Check("partition", "fail", found, "set partition in the profile")]
    if not parts:
        found = f"there is no default among {known}"
        return [Check("partition", "fail", found, "set partition in the profile")]
    checks = [_nodes(part) for part in parts]
    if any(check.level == "ok" for check in checks):  # a job takes the one that is up
        checks = [
            replace(check, level="warn") if check.level == "fail" else check for check in checks
        ]
    if profile:
        checks += _too_large(facts, parts, profile)
        limits = [part.max_min for part in parts if part.max_min]
        if limits and profile.signal_delay_s * 4 > min(limits) * 60:
            found = f"{profile.signal_delay_s} s before a limit of {min(limits)} min: much of each job is not used"
            checks.append(Check("signal_delay_s", "warn", found, "a smaller one in the profile"))
    return checks


def _nodes(part: Partition) -> Check:
    name = f"partition {part.name}"[:19]
    if not part.is_up:
        return Check(
            name, "fail", "takes no jobs now (State is not UP)", f"{ADMIN}, or another partition"
        )
    if not part.usable:
        return Check(
            name,
            "fail",
            f"none of its {part.nodes} nodes can run a job now",
            f"sinfo -R says why; {ADMIN}",
        )
    shape = f"{part.cpus} cores, {part.memory_mb / 1024:,.0f} GiB"
    gpus = f", {part.gpus} x {part.gpu_type or 'GPU'}" if part.gpus else ", no GPUs"
    others = part.nodes - sum(kind.nodes for kind in part.described)
    rest = f"; {others} with other GPUs, or none" if others else ""
    longest = f", at most {_length(part.max_min)}" if part.max_min else ""
    return Check(
        name, "ok", f"{part.usable} of {part.nodes} nodes usable: {shape}{gpus} each{rest}{longest}"
    )


def _length(minutes: int) -> str:
    days, hours = minutes / 1440, minutes / 60
    return (
        f"{days:g} days"
        if days >= 2
        else f"{hours:g} hours"
        if hours >= 2
        else f"{minutes} minutes"
    )


def _too_large(facts: SlurmFacts, parts: list[Partition], profile: ClusterProfile) -> list[Check]:
    """What a run asks for that is not there: it never starts, unless another partition of its list has it."""
    refused = {part.name: part.refuses(profile) for part in parts}
    all_must = facts.config.get("EnforcePartLimits", "").upper() in ("ALL", "YES")
    others = [name for name, words in refused.items() if not words]
    checks = []
    for name, words in refused.items():
        place = f" ({name})" if len(parts) > 1 else ""
        for word in words:
            if others and not all_must:
                hint = f"such a job starts in {', '.join(others)} alone"
                checks.append(Check("what a run asks", "warn", f"{word}{place}", hint))
            else:
                hint = "change it in the profile: such a job never starts"
                checks.append(Check("what a run asks", "fail", f"{word}{place}", hint))
    return checks


def each(parts: list[Partition], look: Callable[[Partition | None], list[Check]]) -> list[Check]:
    """The same look at each partition; what is the same for all stands once."""
    answers = {part.name: look(part) for part in parts}
    if len(answers) < 2 or all(
        checks == next(iter(answers.values())) for checks in answers.values()
    ):
        return next(iter(answers.values()), None) or look(None)
    return [
        replace(check, found=f"{name}: {check.found}")
        for name, checks in answers.items()
        for check in checks
    ]


def preemption(facts: SlurmFacts, part: Partition | None) -> list[Check]:
    """Whether a run is told before it has to go, and whether it comes back."""
    kind = facts.config.get("PreemptType", "")
    if kind.lower() in NONE or kind == "preempt/none":
        return [Check("preemption", "ok", "off")]
    mode = (
        part.preempt_mode if part and part.preempt_mode else facts.config.get("PreemptMode", "")
    ).upper()
    mode = mode.replace("GANG,", "").replace(",GANG", "")
    grace_s = part.grace_s if part else 0
    settings = ",".join(
        facts.config.get(key, "") for key in ("SlurmctldParameters", "PreemptParameters")
    )
    told = re.search(r"\b(preempt_)?send_user_signal\b", settings) is not None
    if mode == "OFF":
        return [Check("preemption", "ok", f"{kind}, but not in this partition (PreemptMode OFF)")]
    if mode in ("SUSPEND", "GANG"):
        found = f"{kind}, {mode}: a run stands still in memory while others use its node"
        return [
            Check(
                "preemption",
                "warn",
                found,
                "hang_timeout_s may end it, and it comes back; another partition",
            )
        ]
    checks = [Check("preemption", "ok", f"{kind}, {mode}: a run goes on from its checkpoint")]
    if mode == "CANCEL":
        hint = "follow_up of the profile, or `furnace submit` again, sends it again"
        checks = [
            Check(
                "preemption", "warn", f"{kind}, CANCEL: the job does not come back by itself", hint
            )
        ]
    if grace_s:
        checks.append(Check("GraceTime", "ok", f"{grace_s} s to save in"))
    else:
        hint = f"{ADMIN} for GraceTime; checkpoint more often (checkpoint.every)"
        checks.append(
            Check(
                "GraceTime", "warn", "0: a run is killed at once, and loses its last interval", hint
            )
        )
    if told:
        checks.append(
            Check("preemption signal", "ok", "the job's own signal is sent (send_user_signal)")
        )
    else:
        found = (
            "only SIGTERM to the ranks: Furnace saves on that too, the batch script hears nothing"
        )
        hint = f"{ADMIN} for SlurmctldParameters=preempt_send_user_signal (PreemptParameters on newer Slurm)"
        checks.append(Check("preemption signal", "warn", found, hint))
    return checks


def gpu_flag(
    facts: SlurmFacts, parts: list[Partition], profile: ClusterProfile | None
) -> list[Check]:
    """How this site wants GPUs asked for: sbatch --test-only was asked each way."""
    if not any(part.gpus for part in parts):
        return [Check("GPU flag", "ok", "this partition has no GPUs")] if parts else []
    if not facts.gpu_flags:
        return []
    taken = [way for way, against in facts.gpu_flags.items() if not against]
    if not taken:
        word = next(iter(facts.gpu_flags.values()))
        return [
            Check(
                "GPU flag",
                "warn",
                f"sbatch refuses all ways: {word}",
                "give account or qos in the profile",
            )
        ]
    if profile and profile.gpu_flag and profile.gpu_flag not in taken:
        found = f"{profile.gpu_flag} is refused: {facts.gpu_flags[profile.gpu_flag]}"
        return [Check("GPU flag", "fail", found, f"gpu_flag: {taken[0]} in the profile")]
    return [Check("GPU flag", "ok", f"sbatch takes {', '.join(taken)}")]
