"""Real error messages of sbatch: whether the job may exist, and which key fixes the problem."""

import pytest

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.slurm.sbatch_errors import hint, is_away, is_doubtful, short

FAILED = "sbatch: error: Batch job submission failed: "
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"

REFUSED = [
    (f"{FAILED}Invalid partition name specified", "set `partition` in the profile"),
    (
        f"{FAILED}Invalid account or account/partition combination specified",
        "set `account` in the profile",
    ),
    (f"{FAILED}Invalid qos specification", "set `qos` in the profile"),
    (f"{FAILED}Invalid wckey specification", "set `wckey` in the profile"),
    (f"{FAILED}Invalid job array specification", "set `max_array_size` in the profile"),
    (f"{FAILED}Invalid feature specification", "fix `constraint` in the profile"),
    (
        f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)",
        "`resources.timeout_min` of the grid",
    ),
    (
        f"{FAILED}Requested node configuration is not available",
        "fix nodes, cpus_per_task, mem_gb, gpus_per_node",
    ),
    (
        "sbatch: error: CPU count per node can not be satisfied "
        f"{FAILED}Requested node configuration is not available",
        "fix nodes, cpus_per_task, mem_gb",
    ),
    (
        "sbatch: error: Memory specification can not be satisfied "
        f"{FAILED}Requested node configuration is not available",
        "mem_gb",
    ),
    (f"{FAILED}Memory required by task is not available", "mem_gb"),
    (f"{FAILED}More processors requested than permitted", "cpus_per_task"),
    (f"{FAILED}Node count specification invalid", "fix nodes"),
    (f"{FAILED}Invalid generic resource (gres) specification", "gpus_per_node or gpu_type"),
    (
        f"{FAILED}Invalid GRES specification (with and without type identification)",
        "gpus_per_node or gpu_type",
    ),
    ("sbatch: error: AssocMaxSubmitJobLimit", "set `max_submit_jobs` in the profile"),
    ("sbatch: error: QOSMaxSubmitJobPerUserLimit", "set `max_submit_jobs` in the profile"),
    (
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit {FAILED}Job violates accounting/QOS policy "
        "(job submit limit, user's size and/or time limits)",
        "set `max_submit_jobs` in the profile",
    ),
    (
        f"sbatch: error: QOSMaxWallDurationPerJobLimit {FAILED}{POLICY}",
        "it asks for more than the QOS's limit of time for one job; ask for less, or fix qos",
    ),
    (
        f"sbatch: error: QOSMinGRES allocation failure: {POLICY}",
        "it asks for less than the QOS's minimum of GPUs or other GRES; fix qos in the profile",
    ),
    (
        f"sbatch: error: AssocGrpCpuLimit {FAILED}{POLICY}",
        "one job alone asks for more CPUs than the account allows; ask for less, or use",
    ),
    (
        f"sbatch: error: QOSMaxGRESPerUser {FAILED}{POLICY}",
        "one job alone asks for more GPUs or other GRES than the QOS allows; ask for less",
    ),
    (f"{FAILED}{POLICY}", "as many jobs as it allows, or each asks for too much"),
    (f"{FAILED}Invalid node name specified", "fix `nodelist` in `sbatch`"),
    (f"{FAILED}User's group not permitted to use this partition", "set `partition` in the profile"),
    (f"{FAILED}Access/permission denied", "use a login node"),
    (
        f"{FAILED}MaxJobCount limit reached",
        "wait for some to end, or set `max_submit_jobs` in the profile",
    ),
    (
        "sbatch: unrecognized option '--gpus-per-node=4' "
        'Try "sbatch --help" for more information',
        "set its key to null in the profile",
    ),
    (f"{FAILED}Unspecified error", "fix the profile, and check the batch script with --dry-run"),
]
AWAY = [
    f"{FAILED}Unable to contact slurm controller (connect failure)",
    f"{FAILED}Connection refused",
    f"{FAILED}Slurm backup controller in standby mode",
    f"{FAILED}Controller is in standby mode, try a different controller",
    "sbatch: error: fetch_config: DNS SRV lookup failed "
    "sbatch: fatal: Could not establish a configuration source",
]
DOUBTFUL = [
    "",
    " \n",
    f"{FAILED}Socket timed out on send/recv operation",
    "sbatch: error: slurm_receive_msgs: Socket timed out on send/recv operation "
    f"{FAILED}Unexpected message received",
    f"{FAILED}Zero Bytes were transmitted or received",
    f"{FAILED}Unexpected message received",
    f"{FAILED}Connection reset by peer",
    f"{FAILED}Unable to contact slurm controller (receive failure)",
    f"{FAILED}Message send failure",
    f"{FAILED}Broken pipe",
    "sbatch took longer than 30 s",
]


@pytest.mark.parametrize(("words", "advice"), REFUSED)
def test_a_refusal_is_certain_and_has_a_hint(words, advice):
    assert not is_away(words)
    assert not is_doubtful(words)
    assert advice in hint(words)
    assert hint(short(words)) == hint(words)
    assert hint(words.upper()) == hint(words.lower()) == hint(words)


@pytest.mark.parametrize("words", AWAY)
def test_the_controller_is_away(words):
    assert is_away(words)
    assert is_away(short(words))


@pytest.mark.parametrize("words", DOUBTFUL)
def test_a_lost_answer_is_doubtful(words):
    assert is_doubtful(words)
    assert is_doubtful(short(words))
    assert not is_away(words)


def test_keys_in_hints_exist():
    text = " ".join(hint(words) for words, _ in REFUSED)
    named = {
        "partition",
        "account",
        "qos",
        "wckey",
        "constraint",
        "max_array_size",
        "max_submit_jobs",
    }
    assert named <= set(ClusterProfile.model_fields)
    assert all(f"`{name}`" in text for name in named)
    assert {"nodes", "cpus_per_task", "mem_gb", "gpus_per_node", "gpu_type"} <= set(
        ClusterProfile.model_fields
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"{FAILED}Invalid qos specification", "Invalid qos specification"),
        ("sbatch: unrecognized option '--foo'", "unrecognized option '--foo'"),
        (
            "allocation failure: Invalid partition name specified",
            "Invalid partition name specified",
        ),
        ("allocation failure: error: Invalid qos specification", "Invalid qos specification"),
        ("Access to node7: error 5", "Access to node7: error 5"),
        ("", ""),
    ],
)
def test_short_messages(message, expected):
    assert short(message) == expected


def test_short_message_of_two_lines():
    first = "sbatch: error: CPU count per node can not be satisfied"
    said = f"{first}\n{FAILED}Requested node configuration"
    words = "CPU count per node can not be satisfied Requested node configuration"
    assert " ".join(short(said).split()) == words
