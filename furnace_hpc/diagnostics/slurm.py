"""Check Slurm's settings. Each line names the effect on runs, and who can change it."""

import re
import shutil
from collections.abc import Callable, Mapping

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics.report import Check, fail, ok, warn
from furnace_hpc.diagnostics.slurm_info import NONE, SlurmFacts
from furnace_hpc.diagnostics.slurm_partitions import ADMIN, each, gpu_flag, partitions, preemption
from furnace_hpc.slurm.parsing import largest_array, parse_count

FEW_JOBS, SHORT_KILL_S = 50, 10


def slurm_checks(
    facts: SlurmFacts, profile: ClusterProfile | None
) -> list[Callable[[], Check | list[Check]]]:
    """All checks of Slurm's settings, for the profile's partitions or the default partition."""
    parts, missing = facts.named(profile.partition if profile else None)
    return [
        lambda: controller(facts),
        lambda: check_profile(profile),
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


def controller(facts: SlurmFacts) -> list[Check]:
    """The controller's version and cluster, and output lines that cannot be read."""
    major, minor = facts.version
    name = facts.config.get("ClusterName", "unknown")
    answers = ok("controller", f"Slurm {major}.{minor:02} answers, cluster {name}")
    if not facts.unread:
        return [answers]
    found = f"{len(facts.unread)} lines are skipped, for example {facts.unread[0][:40]!r}"
    hint = "a banner, or a wrapper of Slurm's commands: turn it off for scripts"
    return [answers, warn("other lines", found, hint)]


def check_profile(profile: ClusterProfile | None) -> Check:
    """The profile that a submission would use."""
    if profile is None:
        hint = "write one: `furnace doctor --write-profile NAME`"
        return warn("profile", "no profile has this cluster_name", hint)
    ranks = f"{profile.nodes} x {profile.processes_per_node} ranks (nodes x ranks)"
    return ok("profile", f"{profile.name}: a run gets {ranks}")


def accounting(facts: SlurmFacts) -> list[Check]:
    """Check the accounting. Some minutes after a job has ended, only it still has the reason."""
    kind = facts.config.get("AccountingStorageType", "")
    if kind != "accounting_storage/slurmdbd":
        found = (
            f"off ({kind or 'unknown'}): the reason of a killed job is known for MinJobAge only, "
            "and your job limits are not known"
        )
        return [warn("accounting", found, f"{ADMIN} for slurmdbd; runs work without it")]
    checks = [ok("accounting", "slurmdbd")]
    names = list(dict.fromkeys(one.account for one in facts.associations))
    if names:
        more = ", ..." * (len(names) > 4)
        checks.append(ok("accounts", f"you may charge {', '.join(names[:4])}{more}"))
    elif "associations" in facts.config.get("AccountingStorageEnforce", ""):
        hint = f"{ADMIN} for an account (sacctmgr show assoc user=$USER is empty)"
        checks.append(fail("accounts", "you have none, and Slurm requires one", hint))
    return checks


def limits(facts: SlurmFacts, profile: ClusterProfile | None) -> list[Check]:
    """The largest array, and the most jobs of a user."""
    most = (profile.max_submit_jobs if profile else None) or facts.submit_limit
    return [_array_limit(facts.config), _job_limit(most)]


def _array_limit(config: Mapping[str, str]) -> Check:
    name, size = "MaxArraySize", largest_array(config)
    if size is None:
        hint = "set max_array_size in the profile"
        return warn(name, "not in Slurm's settings; 1001 is assumed", hint)
    if size < 2:
        return fail(name, f"{size}: job arrays are off", f"{ADMIN}; grids need arrays")
    if size != parse_count(config.get("MaxArraySize", "")):
        name = "max_array_tasks"
    return ok(name, f"{size}: larger grids are split into several arrays")


def _job_limit(most: int | None) -> Check:
    name = "jobs at a time"
    if most is None:
        return ok(name, "no limit is visible")
    if most < 3:
        hint = f"{ADMIN}: an array of one, its follow-up job and this job are three"
        return fail(name, f"at most {most}", hint)
    found = f"at most {most:,}: larger grids are submitted in waves"
    if most < FEW_JOBS:
        return warn(name, found, "waves are small, and each waits for the one before")
    return ok(name, found)


def requeue(facts: SlurmFacts) -> Check:
    """Whether jobs are requeued after a node failure."""
    if facts.config.get("JobRequeue") == "1":
        return ok("JobRequeue", "1: jobs start again after a node failure")
    found = "0: only jobs that ask for it are requeued; Furnace's do (--requeue)"
    hint = "run `furnace drill`; if jobs are not requeued, follow-up jobs submit their runs again"
    return warn("JobRequeue", found, hint)


def kill_wait(facts: SlurmFacts) -> Check:
    """The time between SIGTERM and SIGKILL at the time limit."""
    text = facts.config.get("KillWait", "")
    digits = re.match(r"[0-9]{1,9}", text)
    found = f"{text or 'unknown'} from SIGTERM to SIGKILL"
    if digits and int(digits[0]) >= SHORT_KILL_S:
        return ok("KillWait", found)
    found += ", too short to save; runs save signal_delay_s before the limit"
    hint = "keep signal_delay_s well above the time of a checkpoint"
    return warn("KillWait", found, hint)


def cpus(facts: SlurmFacts, profile: ClusterProfile | None) -> Check:
    """Whether srun passes a job's cores on to its steps."""
    name, found = "cpus-per-task", "srun inherits them"
    if (22, 5) <= facts.version < (23, 11):
        found = "srun of 22.05 to 23.02 does not inherit them; Furnace passes them on"
    if profile and profile.cpus_per_task is None:
        found += "; the profile sets none: a rank may get one core"
        return warn(name, found, "set cpus_per_task in the profile")
    return ok(name, found)


def tracking(facts: SlurmFacts) -> list[Check]:
    """Whether Slurm kills all processes of a job, and binds them to their cores."""
    kind, tasks = facts.config.get("ProctrackType", ""), facts.config.get("TaskPlugin", "")
    processes = ok("ProctrackType", kind)
    if "cgroup" not in kind:
        found = f"{kind}: processes that leave their session survive the job"
        processes = warn("ProctrackType", found, f"{ADMIN} for proctrack/cgroup")
    if "affinity" in tasks or "cgroup" in tasks:
        return [processes, ok("TaskPlugin", tasks)]
    found = f"{tasks or 'none'}: jobs can use cores and GPUs of other jobs"
    hint = f"{ADMIN} for task/cgroup,task/affinity; or take whole nodes"
    return [processes, warn("TaskPlugin", found, hint)]


def containers(facts: SlurmFacts) -> Check:
    """Container tools, which can provide a Python that the nodes lack."""
    tools = ("apptainer", "singularity", "podman", "enroot")
    found = [tool for tool in tools if shutil.which(tool)]
    if facts.has_pyxis:
        found.append("pyxis (srun --container-image)")
    return ok("containers", ", ".join(found) or "none; Furnace needs none")


def privacy(facts: SlurmFacts) -> Check:
    """Who can read the environment and script of a job."""
    flags = facts.config.get("AccountingStoreFlags", "").lower()
    stored = [part for part in ("env", "script") if f"job_{part}" in flags]
    if stored:
        found = f"the accounting keeps every job's {' and '.join(stored)}"
        hint = "keep tokens in files of mode 0600, not in the environment or the profile's setup"
        return warn("privacy", found, hint)
    private = facts.config.get("PrivateData", "none")
    found = f"PrivateData {private}"
    if private.lower() in NONE:
        found = "all users can see names and comments of jobs"
    return ok("privacy", f"{found}; Furnace puts no secrets there")
