"""Check the partitions of a profile. Slurm starts a job in the first of them that can take it."""

import re
from collections.abc import Callable
from dataclasses import replace

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics.partitions import Partition
from furnace_hpc.diagnostics.report import NAME_WIDTH, Check, fail, ok, warn
from furnace_hpc.diagnostics.slurm_info import NONE, SlurmFacts

ADMIN = "ask the administrators"


def partitions(
    facts: SlurmFacts, parts: list[Partition], missing: list[str], profile: ClusterProfile | None
) -> list[Check]:
    """Check that the partitions exist, that one is up, and that its nodes are large enough."""
    known, hint = ", ".join(part.name for part in facts.partitions), "set partition in the profile"
    if missing:
        found = f"{', '.join(map(repr, missing))} does not exist; there are {known}"
        return [fail("partition", found, hint)]
    if not parts:
        return [fail("partition", f"none of {known} is the default", hint)]
    checks = [_nodes(part) for part in parts]
    if any(check.level == "ok" for check in checks):
        # a job starts in the partition that is up
        checks = [
            check if check.level == "ok" else replace(check, level="warn") for check in checks
        ]
    checks += mixed_gpus(parts, profile)
    if profile:
        checks += _too_large(facts, parts, profile)
        checks += _lead_time(parts, profile)
    return checks


def mixed_gpus(parts: list[Partition], profile: ClusterProfile | None) -> list[Check]:
    """Warn if runs of one grid can get different types of GPUs."""
    if profile and (profile.gpu_type or not profile.gpu_flag):
        return []
    types = {kind for part in parts for node in part.kinds for kind, _ in node.gpus if kind}
    if len(types) < 2:
        return []
    found = f"{', '.join(sorted(types))}: times, costs and last bits of runs would differ"
    return [warn("mixed GPU types", found, "set gpu_type in the profile")]


def _nodes(part: Partition) -> Check:
    name = f"partition {part.name}"[:NAME_WIDTH]
    if not part.is_up:
        hint = f"{ADMIN}, or choose another partition"
        return fail(name, "takes no jobs now (State is not UP)", hint)
    if not part.usable:
        found = f"none of its {part.nodes} nodes can run a job now"
        return fail(name, found, f"sinfo -R lists the reasons; {ADMIN}")
    gpus = f"{part.gpus} x {part.gpu_type or 'GPU'}" if part.gpus else "no GPUs"
    found = f"{part.usable} of {part.nodes} nodes usable: {part.cpus} cores, "
    found += f"{part.memory_mb / 1024:,.0f} GiB, {gpus} each"
    others = part.nodes - sum(kind.nodes for kind in part.described)
    if others:
        found += f"; {others} with other GPUs, or none"
    if part.max_min:
        found += f", at most {_length(part.max_min)}"
    return ok(name, found)


def _length(minutes: int) -> str:
    if minutes >= 2 * 1440:
        return f"{minutes / 1440:g} days"
    if minutes >= 2 * 60:
        return f"{minutes / 60:g} hours"
    return f"{minutes} minutes"


def _lead_time(parts: list[Partition], profile: ClusterProfile) -> list[Check]:
    """Warn if runs stop for saving long before a short time limit."""
    shortest_min = min((part.max_min for part in parts if part.max_min), default=None)
    if shortest_min is None or profile.signal_delay_s * 4 <= shortest_min * 60:
        return []
    found = f"{profile.signal_delay_s} s before a limit of {shortest_min} min: each job loses "
    found += "this time"
    return [warn("signal_delay_s", found, "set a smaller one in the profile")]


def _too_large(facts: SlurmFacts, parts: list[Partition], profile: ClusterProfile) -> list[Check]:
    """List what a run asks for and a partition does not have.

    Such a run never starts, unless another partition of the profile can take it.
    """
    problems = {part.name: part.refuses(profile) for part in parts}
    fitting = [name for name, found in problems.items() if not found]
    all_must_fit = facts.config.get("EnforcePartLimits", "").upper() in ("ALL", "YES")
    checks = []
    for name, found in problems.items():
        suffix = f" ({name})" if len(parts) > 1 else ""
        for problem in found:
            check = fail(
                "what a run asks",
                f"{problem}{suffix}",
                "change it in the profile: such a job never starts",
            )
            if fitting and not all_must_fit:
                hint = f"such a job starts only in {', '.join(fitting)}"
                check = replace(check, level="warn", hint=hint)
            checks.append(check)
    return checks


def each(parts: list[Partition], check: Callable[[Partition | None], list[Check]]) -> list[Check]:
    """Run a check on each partition. Equal results are listed once, without a partition's name."""
    results = {part.name: check(part) for part in parts}
    if not results:
        return check(None)
    first, *others = results.values()
    if all(other == first for other in others):
        return first
    return [
        replace(check, found=f"{name}: {check.found}")
        for name, checks in results.items()
        for check in checks
    ]


def preemption(facts: SlurmFacts, part: Partition | None) -> list[Check]:
    """Whether a run can save before it is preempted, and whether it resumes."""
    name, kind = "preemption", facts.config.get("PreemptType", "")
    if kind.lower() in NONE or kind == "preempt/none":
        return [ok(name, "off")]
    mode = facts.config.get("PreemptMode", "")
    if part and part.preempt_mode:
        mode = part.preempt_mode
    mode = mode.upper().replace("GANG,", "").replace(",GANG", "")
    if mode == "OFF":
        return [ok(name, f"{kind}, but not in this partition (PreemptMode OFF)")]
    if mode in ("SUSPEND", "GANG"):
        found = f"{kind}, {mode}: a run is paused in memory while others use its node"
        hint = "choose another partition; hang_timeout_s may kill the run, which then resumes"
        return [warn(name, found, hint)]
    check = ok(name, f"{kind}, {mode}: a run resumes from its checkpoint")
    if mode == "CANCEL":
        hint = "set follow_up in the profile, or run `furnace submit` again"
        check = warn(name, f"{kind}, CANCEL: Slurm does not requeue the job", hint)
    return [check, _grace_time(part), _preemption_signal(facts)]


def _grace_time(part: Partition | None) -> Check:
    if part and part.grace_s:
        return ok("GraceTime", f"{part.grace_s} s to save")
    found = "0: a run is killed at once, and loses the steps since its last checkpoint"
    hint = f"{ADMIN} for GraceTime; save checkpoints more often (checkpoint.every)"
    return warn("GraceTime", found, hint)


def _preemption_signal(facts: SlurmFacts) -> Check:
    name = "preemption signal"
    keys = ("SlurmctldParameters", "PreemptParameters")
    settings = ",".join(facts.config.get(key, "") for key in keys)
    if re.search(r"\b(preempt_)?send_user_signal\b", settings):
        return ok(name, "Slurm sends the job's own signal (send_user_signal)")
    found = "SIGTERM to the ranks only; they save, but the batch script gets no signal"
    hint = f"{ADMIN} for SlurmctldParameters=preempt_send_user_signal "
    hint += "(PreemptParameters on newer Slurm)"
    return warn(name, found, hint)


def gpu_flag(
    facts: SlurmFacts, parts: list[Partition], profile: ClusterProfile | None
) -> list[Check]:
    """Which sbatch flags for GPUs this site accepts, from `sbatch --test-only`."""
    name = "GPU flag"
    if not parts:
        return []
    if not any(part.gpus for part in parts):
        return [ok(name, "this partition has no GPUs")]
    if not facts.gpu_flags:
        return []
    accepted = [flag for flag, problem in facts.gpu_flags.items() if not problem]
    if not accepted:
        problem = next(iter(facts.gpu_flags.values()))
        hint = "set account or qos in the profile"
        return [warn(name, f"sbatch refuses all of them: {problem}", hint)]
    if profile and profile.gpu_flag and profile.gpu_flag not in accepted:
        found = f"{profile.gpu_flag} is refused: {facts.gpu_flags[profile.gpu_flag]}"
        return [fail(name, found, f"set gpu_flag: {accepted[0]} in the profile")]
    return [ok(name, f"sbatch accepts {', '.join(accepted)}")]
