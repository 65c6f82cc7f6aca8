"""Is this cluster as Furnace wants it? Each line says what follows for runs, and who can mend it."""

import re
import shutil
from collections.abc import Callable

from furnace_hpc.checkup.check import Check
from furnace_hpc.checkup.slurm_facts import NONE, Partition, SlurmFacts
from furnace_hpc.cluster.profile import ClusterProfile

ADMIN = "ask the administrators"
FEW_JOBS, SHORT_KILL_S = 50, 10


def slurm_checks(facts: SlurmFacts, profile: ClusterProfile | None) -> list[Callable[[], Check | list[Check]]]:
    """All checks of the controller's answers, for a profile or, without one, the default partition."""
    wanted = profile.partition if profile else None
    part = facts.partition(wanted)

    def controller() -> Check:
        name = facts.config.get("ClusterName", "unknown")
        return Check("controller", "ok", f"Slurm {facts.version[0]}.{facts.version[1]:02} answers, cluster {name}")

    def the_profile() -> Check:
        if profile is None:
            return Check("profile", "warn", "none has this cluster_name", "furnace doctor --write-profile NAME")
        return Check(
            "profile",
            "ok",
            f"{profile.name}: a run gets {profile.nodes} x {profile.processes_per_node} ranks (nodes x ranks)",
        )

    return [
        controller,
        the_profile,
        lambda: accounting(facts),
        lambda: limits(facts, profile),
        lambda: requeue(facts),
        lambda: partition(facts, part, wanted, profile),
        lambda: preemption(facts, part, profile),
        lambda: kill_wait(facts),
        lambda: gpu_flag(facts, part, profile),
        lambda: cpus(facts, profile),
        lambda: tracking(facts),
        lambda: containers(facts),
        lambda: privacy(facts),
    ]


def accounting(facts: SlurmFacts) -> list[Check]:
    """Why a job was killed is known to the accounting alone, minutes later."""
    kind = facts.config.get("AccountingStorageType", "")
    if kind != "accounting_storage/slurmdbd":
        found = f"off ({kind or 'unknown'}): why a killed job ended is known for MinJobAge only, and budgets not at all"
        return [Check("accounting", "warn", found, f"{ADMIN} for slurmdbd; runs work without it")]
    checks = [Check("accounting", "ok", "slurmdbd")]
    names = list(dict.fromkeys(one.account for one in facts.associations))
    if names:
        checks.append(Check("accounts", "ok", f"you may charge {', '.join(names[:4])}{', ...' if names[4:] else ''}"))
    elif "associations" in facts.config.get("AccountingStorageEnforce", ""):
        mend = f"{ADMIN} for an account (sacctmgr show assoc user=$USER is empty)"
        checks.append(Check("accounts", "fail", "you have none, and Slurm wants one", mend))
    return checks


def limits(facts: SlurmFacts, profile: ClusterProfile | None) -> list[Check]:
    """What one array, and one user, may have."""
    said = facts.config.get("MaxArraySize", "")
    if not said.isdigit():
        arrays = Check(
            "MaxArraySize", "warn", "Slurm does not say; 1001 is taken for it", "max_array_size of the profile"
        )
    elif int(said) < 2:
        arrays = Check("MaxArraySize", "fail", f"{said}: job arrays are off", f"{ADMIN}; grids are arrays")
    else:
        arrays = Check("MaxArraySize", "ok", f"{said}: larger grids go in several arrays by themselves")
    most = (profile.max_submit_jobs if profile else None) or facts.submit_limit
    if most is None:
        return [arrays, Check("jobs at a time", "ok", "no limit is seen")]
    if most < 3:
        mend = f"{ADMIN}: an array of one, its follow-up job and this one are three"
        return [arrays, Check("jobs at a time", "fail", f"at most {most}", mend)]
    found = f"at most {most:,}: larger grids go in waves by themselves"
    if most < FEW_JOBS:
        return [arrays, Check("jobs at a time", "warn", found, "waves are small, and each waits for the one before")]
    return [arrays, Check("jobs at a time", "ok", found)]


def requeue(facts: SlurmFacts) -> Check:
    """A node that dies gives its jobs back."""
    if facts.config.get("JobRequeue") == "1":
        return Check("JobRequeue", "ok", "1: jobs of a node that dies start again")
    found = "0: jobs are not requeued unless they ask; Furnace's do (--requeue)"
    return Check("JobRequeue", "warn", found, "if `furnace drill` shows that they are not: retries of the profile")


def partition(
    facts: SlurmFacts, part: Partition | None, wanted: str | None, profile: ClusterProfile | None
) -> list[Check]:
    """The partition is there, up, and its nodes are as large as the profile asks."""
    known = ", ".join(p.name for p in facts.partitions)
    if part is None:
        found = f"{wanted!r} is not there; there are {known}" if wanted else f"there is no default among {known}"
        return [Check("partition", "fail", found, "set partition in the profile")]
    name = f"partition {part.name}"[:19]
    if not part.is_up:
        return [Check(name, "fail", "takes no jobs now (State is not UP)", f"{ADMIN}, or another partition")]
    if not part.usable:
        return [Check(name, "fail", f"none of its {part.nodes} nodes can run a job now", f"sinfo -R says why; {ADMIN}")]
    shape = f"{part.cpus} cores, {part.memory_mb / 1024:,.0f} GiB"
    gpus = f", {part.gpus} x {part.gpu_type or 'GPU'}" if part.gpus else ", no GPUs"
    longest = f", at most {_length(part.max_min)}" if part.max_min else ""
    checks = [Check(name, "ok", f"{part.usable} of {part.nodes} nodes usable: {shape}{gpus} each{longest}")]
    if profile:
        checks += _too_large(part, profile)
        if part.max_min and profile.signal_delay_s * 4 > part.max_min * 60:
            found = f"{profile.signal_delay_s} s before a limit of {part.max_min} min: much of each job is not used"
            checks.append(Check("signal_delay_s", "warn", found, "a smaller one in the profile"))
    return checks


def _length(minutes: int) -> str:
    days, hours = minutes / 1440, minutes / 60
    return f"{days:g} days" if days >= 2 else f"{hours:g} hours" if hours >= 2 else f"{minutes} minutes"


def _too_large(part: Partition, profile: ClusterProfile) -> list[Check]:
    per_node, asked = profile.processes_per_node, []
    gpus = per_node if profile.gpus_per_node is None else profile.gpus_per_node
    wishes = {
        "nodes": (profile.nodes, part.nodes),
        "gpus_per_node": (gpus if profile.gpu_flag else 0, part.gpus),
        "cpus_per_task x processes_per_node": ((profile.cpus_per_task or 0) * per_node, part.cpus),
        "mem_gb": (profile.mem_gb or 0, part.memory_mb // 1024),
    }
    for key, (wish, there) in wishes.items():
        if wish > there:
            asked.append(f"{key} {wish}, a node has {there}" if key != "nodes" else f"nodes {wish}, there are {there}")
    if profile.gpu_type and part.gpu_type and profile.gpu_type != part.gpu_type:
        asked.append(f"gpu_type {profile.gpu_type}, nodes have {part.gpu_type}")
    return [
        Check("what a run asks", "fail", words, "change it in the profile: such a job never starts") for words in asked
    ]


def preemption(facts: SlurmFacts, part: Partition | None, profile: ClusterProfile | None) -> list[Check]:
    """Whether a run is told before it has to go, and whether it comes back."""
    kind = facts.config.get("PreemptType", "")
    if kind.lower() in NONE or kind == "preempt/none":
        return [Check("preemption", "ok", "off")]
    mode = (part.preempt_mode if part and part.preempt_mode else facts.config.get("PreemptMode", "")).upper()
    mode = mode.replace("GANG,", "").replace(",GANG", "")
    grace_s = part.grace_s if part else 0
    settings = ",".join(facts.config.get(key, "") for key in ("SlurmctldParameters", "PreemptParameters"))
    told = re.search(r"\b(preempt_)?send_user_signal\b", settings) is not None
    if mode == "OFF":
        return [Check("preemption", "ok", f"{kind}, but not in this partition (PreemptMode OFF)")]
    if mode in ("SUSPEND", "GANG"):
        found = f"{kind}, {mode}: a run stands still in memory while others use its node"
        return [Check("preemption", "warn", found, "hang_timeout_s may end it, and it comes back; another partition")]
    checks = [Check("preemption", "ok", f"{kind}, {mode}: a run goes on from its checkpoint")]
    if mode == "CANCEL":
        mend = "follow_up of the profile, or `furnace submit` again, sends it again"
        checks = [Check("preemption", "warn", f"{kind}, CANCEL: the job does not come back by itself", mend)]
    if grace_s:
        checks.append(Check("GraceTime", "ok", f"{grace_s} s to save in"))
    else:
        mend = f"{ADMIN} for GraceTime; checkpoint more often (checkpoint.every)"
        checks.append(Check("GraceTime", "warn", "0: a run is killed at once, and loses its last interval", mend))
    if told:
        checks.append(Check("preemption signal", "ok", "the job's own signal is sent (send_user_signal)"))
    else:
        found = "only SIGTERM to the ranks: Furnace saves on that too, the batch script hears nothing"
        mend = f"{ADMIN} for SlurmctldParameters=preempt_send_user_signal (PreemptParameters on newer Slurm)"
        checks.append(Check("preemption signal", "warn", found, mend))
    return checks


def kill_wait(facts: SlurmFacts) -> Check:
    """Between SIGTERM and SIGKILL at the time limit."""
    said = facts.config.get("KillWait", "")
    seconds = int(re.sub(r"\D", "", said) or 0)
    if seconds < SHORT_KILL_S:
        found = f"{said or 'unknown'} from SIGTERM to SIGKILL: too short to save; runs save at signal_delay_s before"
        return Check("KillWait", "warn", found, "keep signal_delay_s well above the time of a checkpoint")
    return Check("KillWait", "ok", f"{said} from SIGTERM to SIGKILL")


def gpu_flag(facts: SlurmFacts, part: Partition | None, profile: ClusterProfile | None) -> list[Check]:
    """How this site wants GPUs asked for: sbatch --test-only was asked each way."""
    if not part or not part.gpus or not facts.gpu_flags:
        return [Check("GPU flag", "ok", "this partition has no GPUs")] if part and not part.gpus else []
    taken = [way for way, against in facts.gpu_flags.items() if not against]
    if not taken:
        word = next(iter(facts.gpu_flags.values()))
        return [Check("GPU flag", "warn", f"sbatch refuses all ways: {word}", "give account or qos in the profile")]
    if profile and profile.gpu_flag and profile.gpu_flag not in taken:
        found = f"{profile.gpu_flag} is refused: {facts.gpu_flags[profile.gpu_flag]}"
        return [Check("GPU flag", "fail", found, f"gpu_flag: {taken[0]} in the profile")]
    return [Check("GPU flag", "ok", f"sbatch takes {', '.join(taken)}")]


def cpus(facts: SlurmFacts, profile: ClusterProfile | None) -> Check:
    """Whether srun hands a job's cores on to its steps."""
    does = not (22, 5) <= facts.version < (23, 11)
    found = "srun inherits them" if does else "srun of 22.05 to 23.02 does not inherit them; Furnace gives them to it"
    if profile and profile.cpus_per_task is None:
        return Check(
            "cpus-per-task", "warn", f"{found}; the profile has none: a rank may get one core", "set cpus_per_task"
        )
    return Check("cpus-per-task", "ok", found)


def tracking(facts: SlurmFacts) -> list[Check]:
    """Whether processes are found again, and kept on their cores."""
    kind, tasks = facts.config.get("ProctrackType", ""), facts.config.get("TaskPlugin", "")
    checks = [Check("ProctrackType", "ok", kind)]
    if "cgroup" not in kind:
        found = f"{kind}: processes that leave their session outlive the job"
        checks = [Check("ProctrackType", "warn", found, f"{ADMIN} for proctrack/cgroup")]
    if "affinity" in tasks or "cgroup" in tasks:
        return [*checks, Check("TaskPlugin", "ok", tasks)]
    found = f"{tasks or 'none'}: jobs are not kept to their own cores and GPUs"
    return [*checks, Check("TaskPlugin", "warn", found, f"{ADMIN} for task/cgroup,task/affinity; or take whole nodes")]


def containers(facts: SlurmFacts) -> Check:
    """What could hold a Python that nodes lack."""
    found = [name for name in ("apptainer", "singularity", "podman", "enroot") if shutil.which(name)]
    found += ["pyxis (srun --container-image)"] if facts.has_pyxis else []
    return Check("containers", "ok", ", ".join(found) or "none here; Furnace needs none")


def privacy(facts: SlurmFacts) -> Check:
    """Who can see what a job was given."""
    stored = [
        word for word in ("job_env", "job_script") if word in facts.config.get("AccountingStoreFlags", "").lower()
    ]
    private = facts.config.get("PrivateData", "none")
    if stored:
        found = f"the accounting keeps every job's {' and '.join(word[4:] for word in stored)}"
        mend = "keep tokens in files of mode 0600, not in the environment or the profile's setup"
        return Check("privacy", "warn", found, mend)
    seen = "names and comments of jobs are seen by all" if private.lower() in NONE else f"PrivateData {private}"
    return Check("privacy", "ok", f"{seen}; Furnace puts no secret there")
