"""What `furnace doctor` says of partitions: nodes of several kinds, several partitions, and banners in the answers."""

import pytest
from test_doctor import OUTPUTS, PROFILE, facts, lines

from furnace_hpc.config.cluster import ClusterProfile, load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.train_config import Resources
from furnace_hpc.diagnostics import device
from furnace_hpc.diagnostics.profile_writer import profile_of, write_profile
from furnace_hpc.diagnostics.report import Check, look
from furnace_hpc.diagnostics.slurm import slurm_checks
from furnace_hpc.diagnostics.slurm_info import SlurmFacts, read_partitions

PARTITION = "PartitionName={} Default={} MaxTime=1-00:00:00 State={} PreemptMode={} GraceTime={}"


def cluster(*parts: tuple[str, list[str]], state: str = "UP", **config: str) -> SlurmFacts:
    """Partitions (name, their nodes as state|cpus|memory|gres); the first is the default one."""
    shown = [
        PARTITION.format(name, "NO" if number else "YES", state if number else "UP", "OFF", 0)
        for number, (name, _) in enumerate(parts)
    ]
    nodes = [f"{name}{n}|{name}|{node}" for name, its in parts for n, node in enumerate(its)]
    partitions = read_partitions("\n".join(shown), "\n".join(nodes))
    return facts(
        config=facts().config | config, partitions=partitions, gpu_flags={"gpus_per_node": ""}
    )


def asks(found: SlurmFacts, **wishes) -> list[tuple[str, str]]:
    profile = ClusterProfile(name="c", executor="slurm", **wishes)
    checks = look("Slurm", *slurm_checks(found, profile)).checks
    return [(check.level, check.found) for check in checks if check.name == "what a run asks"]


GPU, CPU = "idle|64|512000|gpu:3090:8(S:0-1)", "idle|32|128000|(null)"


@pytest.mark.parametrize("nodes", [[GPU, GPU, CPU], [CPU, GPU, GPU], [CPU, CPU, CPU, GPU, GPU]])
def test_a_cpu_node_beside_gpu_nodes_hinders_no_run(nodes):
    found = cluster(("mixed", nodes))
    profile = profile_of("c", found)
    assert (profile["processes_per_node"], profile["gpus_per_node"], profile["gpu_type"]) == (
        8,
        8,
        "3090",
    )
    assert (profile["cpus_per_task"], profile["mem_gb"]) == (8, 475)
    assert (
        asks(
            found,
            partition="mixed",
            processes_per_node=8,
            gpu_type="3090",
            cpus_per_task=8,
            mem_gb=400,
        )
        == []
    )
    assert asks(found, partition="mixed", nodes=2, processes_per_node=8) == []
    assert asks(found, partition="mixed", nodes=2, gpu_flag=None, cpus_per_task=30) == []


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"nodes": 3, "processes_per_node": 8}, "nodes 3, and 2 of 3 have all of gpus_per_node"),
        ({"processes_per_node": 9}, "gpus_per_node 9, a node has 8"),
        ({"nodes": 4}, "nodes 4, there are 3"),
        ({"gpu_type": "a100"}, "gpu_type a100, nodes have 3090"),
        (
            {"gpu_flag": None, "cpus_per_task": 65},
            "cpus_per_task x processes_per_node 65, a node has 64",
        ),
    ],
)
def test_what_no_node_or_too_few_have_never_starts(wishes, says):
    assert asks(cluster(("mixed", [GPU, GPU, CPU])), partition="mixed", **wishes) == [
        ("fail", says)
    ]


def test_several_types_on_a_node_are_counted_by_type():
    found = cluster(("gpu", ["idle|64|512000|gpu:a100:4(S:0),gpu:v100:2(S:1),shard:32"]))
    assert asks(found, partition="gpu", processes_per_node=4, gpu_type="a100") == []
    assert asks(found, partition="gpu", processes_per_node=6) == []
    too_many = asks(found, partition="gpu", processes_per_node=4, gpu_type="v100")
    assert too_many == [("fail", "gpus_per_node 4, a node has 2")]
    assert profile_of("c", found)["gpu_type"] == "a100"
    assert profile_of("c", found)["processes_per_node"] == 4


def test_the_nodes_that_most_are_describe_a_partition():
    found = cluster(("mixed", [GPU, GPU, CPU]))
    line = lines(found, PROFILE.model_copy(update={"partition": "mixed"}))["partition mixed"]
    assert line.found == (
        "3 of 3 nodes usable: 64 cores, 500 GiB, 8 x 3090 each; 1 with other GPUs, or none, at most 24 hours"
    )


BOTH = (("gpu", ["idle|64|512000|gpu:a100:4"]), ("a40", ["idle|32|256000|gpu:a40:8"]))


def test_of_several_partitions_each_is_looked_at():
    found = cluster(*BOTH)
    here = {
        c.name: c.level
        for c in look(
            "", *slurm_checks(found, PROFILE.model_copy(update={"partition": "gpu, a40"}))
        ).checks
    }
    assert (here["partition gpu"], here["partition a40"]) == ("ok", "ok")
    both = {"partition": "gpu,a40", "processes_per_node": 4}
    assert asks(found, **both) == []
    assert asks(found, **both, gpu_type="a100") == [("warn", "gpu_type a100, nodes have a40 (a40)")]
    assert [level for level, _ in asks(found, **both, cpus_per_task=17)] == ["fail", "fail"]
    # sbatch then refuses what one of them cannot take
    strict = cluster(*BOTH, EnforcePartLimits="ALL")
    assert asks(strict, **both, gpu_type="a100") == [
        ("fail", "gpu_type a100, nodes have a40 (a40)")
    ]
    missing = lines(found, PROFILE.model_copy(update={"partition": "gpu,gone"}))["partition"]
    assert (missing.level, missing.found) == ("fail", "'gone' is not there; there are gpu, a40")


def test_one_partition_of_several_that_is_down_is_no_failure():
    found = lines(cluster(*BOTH, state="DOWN"), PROFILE.model_copy(update={"partition": "gpu,a40"}))
    assert (found["partition gpu"].level, found["partition a40"].level) == ("ok", "warn")
    assert (
        lines(cluster(*BOTH, state="DOWN"), PROFILE.model_copy(update={"partition": "a40"}))[
            "partition a40"
        ].level
        == "fail"
    )


def test_a_profile_for_several_partitions_fits_them_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_profile("both", cluster(*BOTH), "gpu,a40", replace=False)
    profile = load_profile("both")
    assert (profile.partition, profile.processes_per_node, profile.gpu_type) == ("gpu,a40", 4, None)
    assert (profile.cpus_per_task, profile.mem_gb) == (8, 237)
    with pytest.raises(
        ConfigError, match="--partition got 'gone', wanted one of this cluster's: gpu, a40"
    ):
        profile_of("c", cluster(*BOTH), "gpu,gone")


@pytest.mark.parametrize("kind", ["3090", "2080ti", "1g.5gb", "1g.10gb+me", "nvidia_a100_3g.20gb"])
def test_a_profile_keeps_the_type_of_its_gpus(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write_profile(
        "mine", cluster(("gpu", [f"idle|64|512000|gpu:{kind}:7(S:0-1)"])), None, replace=False
    )
    profile = load_profile("mine")
    assert (profile.gpu_type, profile.processes_per_node) == (kind, 7)


def test_a_type_that_yaml_reads_as_a_number_is_a_type():
    assert (
        ClusterProfile.model_validate({"name": "c", "executor": "slurm", "gpu_type": 3090}).gpu_type
        == "3090"
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("gpu", "gpu"),
        ("gpu,a40", "gpu,a40"),
        ("gpu, a40", "gpu,a40"),
        (["gpu", "a40"], "gpu,a40"),
        (None, None),
    ],
)
def test_a_grids_partition_may_be_several(given, kept):
    assert Resources(partition=given).partition == kept


@pytest.mark.parametrize(
    "given", ["", ",", "gpu,", "gpu,,a40", "gpu a40", "gpu;rm", "g\npu", ["gpu", 3], 7]
)
def test_a_partition_that_slurm_cannot_name_is_refused(given):
    with pytest.raises(ConfigError, match="partition"):
        validate(Resources, {"partition": given}, "grid")


def test_lines_that_are_no_answer_are_told():
    noisy = lines(facts(unread=("CLUSTER: alpha", "*** news ***")))["other lines"]
    assert (noisy.level, noisy.found) == (
        "warn",
        "2 lines are skipped, for example 'CLUSTER: alpha'",
    )
    text = "CLUSTER: alpha\n" + (OUTPUTS / "nodes.txt").read_text()
    assert lines(facts(text))["partition a100"].level == "ok"


CHILD = {
    "torch": "2.13.0+cpu",
    "import_s": 2.0,
    "built": "CPUs",
    "cuda_error": "",
    "gpus": [],
    "all_reduce": [],
}


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        ({}, "ok"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "fail"),
        ({"SLURM_GPUS_ON_NODE": "2"}, "fail"),
        ({"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "fail"),
        ({"SLURM_JOB_GPUS": "3"}, "fail"),
        ({"SLURM_GPUS_ON_NODE": "0"}, "ok"),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": ""}, "ok"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cpu"}, "warn"),
    ],
)
@pytest.mark.parametrize("has_driver", [True, False])
def test_gpus_that_were_given_and_cannot_be_used_fail(monkeypatch, variables, level, has_driver):
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    checks = device.judge(CHILD | {"deepspeed": "0.19.8"}, has_driver)
    [found] = [check for check in checks if check.name == "GPUs"]
    assert found.level == ("warn" if level == "ok" and has_driver else level)
    assert isinstance(found, Check)


def test_fewer_gpus_than_were_given_fail(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    gpu = {
        "index": 0,
        "name": "H100",
        "free_gib": 1.0,
        "total_gib": 2.0,
        "bf16": True,
        "gb_s": 3000.0,
    }
    known = CHILD | {
        "deepspeed": "0.19.8",
        "gpus": [gpu],
        "cuda": "13.0",
        "driver": "580",
        "nccl": "2",
    }
    for given, level in (("0,1", "fail"), ("0", None), ("MIG-a,MIG-b", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        found = {check.name: check.level for check in device.judge(known, True)}
        assert found.get("GPUs") == level
