"""What sbatch says when it does not submit: whether it may have submitted all the same, and how to fix it."""

import re

# The controller may have taken the job before its answer was lost.
_DOUBTFUL = re.compile(
    r"timed out|took longer|transmit|Unexpected message|Zero Bytes|unknown reason|slurm_receive_msg|"
    r"(receive|send) failure|Connection reset|Broken pipe|printed no job id",
    re.IGNORECASE,
)
# It never heard of it, or has said that it takes nothing now.
_AWAY = re.compile(
    r"Unable to contact slurm controller \(connect failure\)|Connection refused|in standby mode|"
    r"Could not establish a configuration source|DNS SRV lookup failed|"
    r"Rate limit exceeded|temporarily unable to accept",
    re.IGNORECASE,
)
_PARTITION = (
    "`sinfo -s` lists the partitions: set `partition` in the profile, or in the grid's resources"
)
_NODES = (
    "the profile asks for more than the partition's nodes have: see `sinfo -o '%P %D %c %m %G'`, and fix nodes, "
    "cpus_per_task, mem_gb, gpus_per_node or gpu_type"
)
_LIMIT = "you have as many jobs as the site allows: wait for some to end, or set `max_submit_jobs` in the profile"
_MENDS = (
    (r"Submit\w*Limit|submit limit|MaxJobCount", _LIMIT),
    (r"invalid partition|partition specified|permitted to use this partition", _PARTITION),
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
        "this Slurm does not know that flag: set its key to null in the profile",
    ),
    (r"wckey", "set `wckey` in the profile to what the site wants, or to null"),
    (
        r"time.?limit|WallDuration",
        "`resources.timeout_min` of the grid is more than the partition's MaxTime (`sinfo -o '%P %l'`)",
    ),
    (
        r"invalid job array",
        "set `max_array_size` in the profile to what `scontrol show config` says of MaxArraySize",
    ),
    (
        r"(node|partition) configuration|node count|CPU count|more processors|Memory|resource|gres",
        _NODES,
    ),
    (
        r"constraint|feature",
        "no node has these features: see `sinfo -o '%P %f'`, and fix `constraint` in the profile",
    ),
    (
        r"denied|not permitted|submit from",
        "the site lets no job be submitted from here: use a login node",
    ),
)


def is_away(words: str) -> bool:
    """Whether the controller never took it, and may take it later."""
    return bool(_AWAY.search(words))


def is_doubtful(words: str) -> bool:
    """Whether the job may exist although sbatch failed."""
    return not words.strip() or bool(_DOUBTFUL.search(words))


def hint(words: str) -> str:
    """What to do about a refusal."""
    for pattern, advice in _MENDS:
        if re.search(pattern, words, re.IGNORECASE):
            return advice
    return "fix the profile, and look at the script with --dry-run"


def short(words: str) -> str:
    """Slurm's own words, without its prefixes."""
    return re.sub(
        r"\s*(sbatch|allocation failure): (error: )?|Batch job submission failed: ", " ", words
    ).strip(" \n")
