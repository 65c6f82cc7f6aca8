"""Read sbatch's error messages: whether the job may exist anyway, and how to fix the problem."""

import re

from furnace_hpc.slurm.reasons import CANCEL_AND_SUBMIT, explain

# The controller may have taken the job before its answer was lost.
_DOUBTFUL = re.compile(
    r"timed out|took longer|transmit|Unexpected message|Zero Bytes|unknown reason|"
    r"slurm_receive_msg|(receive|send) failure|Connection reset|Broken pipe|printed no job id",
    re.IGNORECASE,
)
# The controller did not get the request, or answered that it takes nothing now.
_AWAY = re.compile(
    r"Unable to contact slurm controller \(connect failure\)|Connection refused|in standby mode|"
    r"Could not establish a configuration source|DNS SRV lookup failed|"
    r"Rate limit exceeded|temporarily unable to accept",
    re.IGNORECASE,
)
# A limit that sbatch names before its message, such as QOSMaxWallDurationPerJobLimit. Numbers of
# submitted jobs have a hint of their own.
_LIMIT = re.compile(r"\b(?:QOS|Assoc)(?:Grp|Max|Min)(?!Submit)\w+", re.IGNORECASE)
_HINTS = (
    (
        r"Submit\w*Limit|MaxJobCount",
        "you have as many jobs as the site allows: wait for some to end, or set `max_submit_jobs` "
        "in the profile",
    ),
    (
        r"submit limit, user's size",  # Slurm names no limit
        "a limit of your account or QOS: you have as many jobs as it allows, or each asks for too "
        "much (`sacctmgr show qos`)",
    ),
    (
        r"invalid partition|partition specified|permitted to use this partition",
        "`sinfo -s` lists the partitions: set `partition` in the profile, or in the grid's "
        "resources",
    ),
    (
        r"invalid account|InvalidAccount",
        "`sacctmgr show assoc user=$USER` lists yours: set `account` in the profile",
    ),
    (
        r"invalid qos|InvalidQOS",
        "`sacctmgr show assoc user=$USER format=qos` lists yours: set `qos` in the profile",
    ),
    (
        r"unrecognized option|invalid option",
        "this Slurm does not have that flag: set its key to null in the profile, or remove it "
        "from `sbatch`",
    ),
    (
        r"reservation",
        "`scontrol show reservation` lists them and who may use them: fix `reservation` in "
        "`sbatch`",
    ),
    (r"invalid node name", "`sinfo -N` lists the nodes: fix `nodelist` in `sbatch`"),
    (r"license", "`scontrol show licenses` lists the licenses: fix `licenses` in `sbatch`"),
    (r"mutually exclusive|Invalid --", "fix the keys of `sbatch` in the profile and the grid"),
    (r"wckey", "set `wckey` in the profile to the site's value, or to null"),
    (
        r"time.?limit|WallDuration",
        "`resources.timeout_min` of the grid is more than the partition's MaxTime "
        "(`sinfo -o '%P %l'`)",
    ),
    (
        r"invalid job array",
        "set `max_array_size` in the profile to MaxArraySize of `scontrol show config`, or to "
        "max_array_tasks of its SchedulerParameters if that is smaller",
    ),
    (
        r"(node|partition) configuration|node count|CPU count|more processors|Memory|resource|gres",
        "the profile asks for more than the partition's nodes have (`sinfo -o '%P %D %c %m %G'`): "
        "fix nodes, cpus_per_task, mem_gb, gpus_per_node or gpu_type",
    ),
    (
        r"constraint|feature",
        "no node has these features (`sinfo -o '%P %f'`): fix `constraint` in the profile",
    ),
    (
        r"denied|not permitted|submit from",
        "the site does not allow to submit from this machine: use a login node",
    ),
)


def is_away(message: str) -> bool:
    """Whether the controller did not take the job, and may take it later."""
    return bool(_AWAY.search(message))


def is_doubtful(message: str) -> bool:
    """Whether the job may exist although sbatch failed."""
    return not message.strip() or bool(_DOUBTFUL.search(message))


def has_no_cluster(message: str) -> bool:
    """Whether a Slurm command found no slurm.conf, and no server that has one."""
    return "configuration source" in message


def hint(message: str) -> str:
    """How to fix what sbatch refused."""
    limit = _LIMIT.search(message)
    if limit and (reason := explain(limit[0])):
        if fix := reason.action.removesuffix(f", {CANCEL_AND_SUBMIT}"):
            return f"{reason.text}; {fix}"
        # Above the limit only together with other jobs, it would wait. sbatch does not refuse it.
        what, owner = reason.text.rpartition("limit of ")[2], "account"
        if limit[0].lower().startswith("qos"):
            owner = "QOS"
        return (
            f"one job alone asks for more {what} than the {owner} allows; ask for less, or use "
            f"another account or qos"
        )
    for pattern, advice in _HINTS:
        if re.search(pattern, message, re.IGNORECASE):
            return advice
    return "fix the profile, and check the batch script with --dry-run"


def short(message: str) -> str:
    """Slurm's message without its prefixes."""
    return re.sub(
        r"\s*(sbatch|allocation failure): (error: )?|Batch job submission failed: ", " ", message
    ).strip(" \n")
