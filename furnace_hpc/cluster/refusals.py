"""What sbatch says when it does not submit: whether it may have submitted all the same, and how to mend it."""

import re

# The controller may have taken the job before its answer was lost.
_DOUBTFUL = re.compile(
    r"timed out|took longer|transmit|Unexpected message|Zero Bytes|unknown reason|slurm_receive_msg|"
    r"Socket|Connection reset|Broken pipe",
    re.IGNORECASE,
)
_AWAY = re.compile(
    r"Unable to contact slurm controller|Connection refused|slurmctld.*not responding|in standby mode|"
    r"Unable to establish (controller|configuration)|DNS SRV lookup failed",
    re.IGNORECASE,
)
_MENDS = (
    (
        r"invalid partition",
        "`sinfo -s` lists the partitions: set `partition` in the profile, or in the grid's resources",
    ),
    (r"invalid account|InvalidAccount", "`sacctmgr show assoc user=$USER` lists yours: set `account` in the profile"),
    (r"invalid qos|InvalidQOS", "`sacctmgr show assoc user=$USER format=qos` lists yours: set `qos` in the profile"),
    (r"unrecognized option|invalid option", "this Slurm does not know that flag: set its key to null in the profile"),
    (r"invalid wckey|wckey", "set `wckey` in the profile to what the site wants, or to null"),
    (r"time limit", "`resources.timeout_min` of the grid is more than the partition's MaxTime (`sinfo -o '%P %l'`)"),
    (
        r"invalid job array",
        "set `max_array_size` in the profile to what `scontrol show config | grep MaxArraySize` says",
    ),
    (
        r"Submit\w*Limit|submit limit|MaxJobCount|job violates accounting",
        "you have as many jobs as the site allows: wait for some to end, or set `max_submit_jobs` in the profile",
    ),
    (
        r"node configuration|node count|more processors|Memory|generic resource|gres",
        "the profile asks for more than the partition's nodes have: see `sinfo -o '%P %D %c %m %G'`, and mend nodes, "
        "cpus_per_task, mem_gb, gpus_per_node or gpu_type",
    ),
    (r"constraint|feature", "no node has these features: see `sinfo -o '%P %f'`, and mend `constraint` in the profile"),
    (r"not permitted|Access denied|submit from", "the site lets no job be submitted from here: use a login node"),
)


def is_away(words: str) -> bool:
    """Whether the controller never heard of it."""
    return bool(_AWAY.search(words))


def is_doubtful(words: str) -> bool:
    """Whether the job may exist although sbatch failed."""
    return not words.strip() or bool(_DOUBTFUL.search(words))


def mend(words: str) -> str:
    """What to do about a refusal."""
    for pattern, advice in _MENDS:
        if re.search(pattern, words, re.IGNORECASE):
            return advice
    return "mend the profile, and look at the script with --dry-run"


def short(words: str) -> str:
    """Slurm's own words, without its prefixes."""
    return re.sub(r"\s*(sbatch|allocation failure): (error: )?|Batch job submission failed: ", " ", words).strip(" \n")
