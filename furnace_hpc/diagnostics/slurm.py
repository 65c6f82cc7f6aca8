"""Is this cluster as Furnace wants it? Each line says what follows for runs, and who can fix it."""

import re
import shutil
from collections.abc import Callable

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics.report import Check
from furnace_hpc.diagnostics.slurm_info import NONE, SlurmFacts
from furnace_hpc.diagnostics.slurm_partitions import ADMIN, each, gpu_flag, partitions, preemption
from furnace_hpc.slurm.parsing import whole

FEW_JOBS, SHORT_KILL_S = 50, 10


def slurm_checks(
    facts: SlurmFacts, profile: ClusterProfile | None
) -> list[Callable[[], Check | list[Check]]]:
    """All checks of the controller's answers, for a profile's partitions or, without one, the default partition."""
    parts, missing = facts.named(profile.partition if profile else None)

    def controller() -> list[Check]:
        name = facts.config.get("ClusterName", "unknown")
        found = f"Slurm {facts.version[0]}.{facts.version[1]:02} answers, cluster {name}"
        return [Check("controller", "ok", found), *unread(facts)]

    def the_profile() -> Check:
        if profile is None:
            return Check(
                "profile",
                "warn",
                "none has this cluster_name",
                "furnace doctor --write-profile NAME",
            )
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
        lambda: partitions(facts, parts, missing, profile),
        lambda: each(parts, lambda part: preemption(facts, part)),
        lambda: kill_wait(facts),
        lambda: gpu_flag(facts, parts, profile),
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
        checks.append(
            Check(
                "accounts",
                "ok",
                f"you may charge {', '.join(names[:4])}{', ...' if names[4:] else ''}",
            )
        )
    elif "associations" in facts.config.get("AccountingStorageEnforce", ""):
        hint = f"{ADMIN} for an account (sacctmgr show assoc user=$USER is empty)"
        checks.append(Check("accounts", "fail", "you have none, and Slurm wants one", hint))
    return checks


def limits(facts: SlurmFacts, profile: ClusterProfile | None) -> list[Check]:
    """What one array, and one user, may have."""
    said = facts.config.get("MaxArraySize", "")
    size = whole(said)
    if size is None:
        arrays = Check(
            "MaxArraySize",
            "warn",
            "Slurm does not say; 1001 is taken for it",
            "max_array_size of the profile",
        )
    elif size < 2:
        arrays = Check(
            "MaxArraySize", "fail", f"{said}: job arrays are off", f"{ADMIN}; grids are arrays"
        )
    else:
        arrays = Check(
            "MaxArraySize", "ok", f"{said}: larger grids go in several arrays by themselves"
        )
    most = (profile.max_submit_jobs if profile else None) or facts.submit_limit
    if most is None:
        return [arrays, Check("jobs at a time", "ok", "no limit is seen")]
    if most < 3:
        hint = f"{ADMIN}: an array of one, its follow-up job and this one are three"
        return [arrays, Check("jobs at a time", "fail", f"at most {most}", hint)]
    found = f"at most {most:,}: larger grids go in waves by themselves"
    if most < FEW_JOBS:
        return [
            arrays,
            Check(
                "jobs at a time",
                "warn",
                found,
                "waves are small, and each waits for the one before",
            ),
        ]
    return [arrays, Check("jobs at a time", "ok", found)]


def requeue(facts: SlurmFacts) -> Check:
    """A node that dies gives its jobs back."""
    if facts.config.get("JobRequeue") == "1":
        return Check("JobRequeue", "ok", "1: jobs of a node that dies start again")
    found = "0: jobs are not requeued unless they ask; Furnace's do (--requeue)"
    return Check(
        "JobRequeue",
        "warn",
        found,
        "if `furnace drill` shows that they are not: retries of the profile",
    )


def unread(facts: SlurmFacts) -> list[Check]:
    """What Slurm's commands print beside their answers."""
    if not facts.unread:
        return []
    found = f"{len(facts.unread)} lines are skipped, for example {facts.unread[0][:40]!r}"
    return [
        Check(
            "other lines",
            "warn",
            found,
            "a banner, or a command in front of Slurm's own: quiet it for scripts",
        )
    ]


def kill_wait(facts: SlurmFacts) -> Check:
    """Between SIGTERM and SIGKILL at the time limit."""
    said = facts.config.get("KillWait", "")
    digits = re.match(r"[0-9]{1,9}", said)
    seconds = int(digits[0]) if digits else 0
    if seconds < SHORT_KILL_S:
        found = f"{said or 'unknown'} from SIGTERM to SIGKILL: too short to save; runs save at signal_delay_s before"
        return Check(
            "KillWait", "warn", found, "keep signal_delay_s well above the time of a checkpoint"
        )
    return Check("KillWait", "ok", f"{said} from SIGTERM to SIGKILL")


def cpus(facts: SlurmFacts, profile: ClusterProfile | None) -> Check:
    """Whether srun hands a job's cores on to its steps."""
    does = not (22, 5) <= facts.version < (23, 11)
    found = (
        "srun inherits them"
        if does
        else "srun of 22.05 to 23.02 does not inherit them; Furnace gives them to it"
    )
    if profile and profile.cpus_per_task is None:
        return Check(
            "cpus-per-task",
            "warn",
            f"{found}; the profile has none: a rank may get one core",
            "set cpus_per_task",
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
    return [
        *checks,
        Check(
            "TaskPlugin",
            "warn",
            found,
            f"{ADMIN} for task/cgroup,task/affinity; or take whole nodes",
        ),
    ]


def containers(facts: SlurmFacts) -> Check:
    """What could hold a Python that nodes lack."""
    found = [
        name for name in ("apptainer", "singularity", "podman", "enroot") if shutil.which(name)
    ]
    found += ["pyxis (srun --container-image)"] if facts.has_pyxis else []
    return Check("containers", "ok", ", ".join(found) or "none here; Furnace needs none")


def privacy(facts: SlurmFacts) -> Check:
    """Who can see what a job was given."""
    stored = [
        word
        for word in ("job_env", "job_script")
        if word in facts.config.get("AccountingStoreFlags", "").lower()
    ]
    private = facts.config.get("PrivateData", "none")
    if stored:
        found = f"the accounting keeps every job's {' and '.join(word[4:] for word in stored)}"
        hint = "keep tokens in files of mode 0600, not in the environment or the profile's setup"
        return Check("privacy", "warn", found, hint)
    seen = (
        "names and comments of jobs are seen by all"
        if private.lower() in NONE
        else f"PrivateData {private}"
    )
    return Check("privacy", "ok", f"{seen}; Furnace puts no secret there")
