"""Checks of partitions and GPUs: several kinds of nodes, several partitions, and banners."""

import pytest
from test_doctor import OUTPUTS, facts, lines, lines_of_partition

from furnace_hpc.config.cluster import ClusterProfile, load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.diagnostics.profile_writer import profile_of, write_profile
from furnace_hpc.diagnostics.report import run_checks
from furnace_hpc.diagnostics.slurm import slurm_checks
from furnace_hpc.diagnostics.slurm_info import SlurmFacts, read_partitions

PARTITION = "PartitionName={} Default={} MaxTime=1-00:00:00 State={} PreemptMode={} GraceTime={}"


def cluster(*parts: tuple[str, list[str]], state: str = "UP", **config: str) -> SlurmFacts:
    """Make partitions (name, nodes as state|cpus|memory|gres). The first is the default one."""
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
    checks = run_checks("Slurm", *slurm_checks(found, profile)).checks
    return [(check.level, check.found) for check in checks if check.name == "what a run asks"]


GPU, CPU = "idle|64|512000|gpu:3090:8(S:0-1)", "idle|32|128000|(null)"


@pytest.mark.parametrize("nodes", [[GPU, GPU, CPU], [CPU, GPU, GPU], [CPU, CPU, CPU, GPU, GPU]])
def test_cpu_nodes_beside_gpu_nodes(nodes):
    found = cluster(("mixed", nodes))
    profile = profile_of("c", found)
    assert profile["processes_per_node"] == profile["gpus_per_node"] == 8
    assert profile["gpu_type"] == "3090"
    assert (profile["cpus_per_task"], profile["mem_gb"]) == (8, 475)
    wishes = {"processes_per_node": 8, "gpu_type": "3090", "cpus_per_task": 8, "mem_gb": 400}
    assert asks(found, partition="mixed", **wishes) == []
    assert asks(found, partition="mixed", nodes=2, processes_per_node=8) == []
    assert asks(found, partition="mixed", nodes=2, gpu_flag=None, cpus_per_task=30) == []


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        (
            {"nodes": 3, "processes_per_node": 8},
            "nodes 3, but only 2 of 3 have enough of gpus_per_node",
        ),
        ({"processes_per_node": 9}, "gpus_per_node 9, a node has 8"),
        ({"nodes": 4}, "nodes 4, there are 3"),
        ({"gpu_type": "a100"}, "gpu_type a100, nodes have 3090"),
        (
            {"gpu_flag": None, "cpus_per_task": 65},
            "cpus_per_task x processes_per_node 65, a node has 64",
        ),
    ],
)
def test_a_run_that_never_starts(wishes, text):
    assert asks(cluster(("mixed", [GPU, GPU, CPU])), partition="mixed", **wishes) == [
        ("fail", text)
    ]


def test_gpu_types_of_a_node_are_counted_apart():
    found = cluster(("gpu", ["idle|64|512000|gpu:a100:4(S:0),gpu:v100:2(S:1),shard:32"]))
    assert asks(found, partition="gpu", processes_per_node=4, gpu_type="a100") == []
    assert asks(found, partition="gpu", processes_per_node=6) == []
    too_many = asks(found, partition="gpu", processes_per_node=4, gpu_type="v100")
    assert too_many == [("fail", "gpus_per_node 4, a node has 2")]
    assert profile_of("c", found)["gpu_type"] == "a100"
    assert profile_of("c", found)["processes_per_node"] == 4


def test_the_most_frequent_nodes_are_described():
    found = cluster(("mixed", [GPU, GPU, CPU]))
    line = lines_of_partition(found, "mixed")["partition mixed"]
    assert line.found == (
        "3 of 3 nodes usable: 64 cores, 500 GiB, 8 x 3090 each; 1 with other GPUs, or none, "
        "at most 24 hours"
    )


BOTH = (("gpu", ["idle|64|512000|gpu:a100:4"]), ("a40", ["idle|32|256000|gpu:a40:8"]))


def test_each_of_several_partitions_is_checked():
    found = cluster(*BOTH)
    here = lines_of_partition(found, "gpu, a40")
    assert (here["partition gpu"].level, here["partition a40"].level) == ("ok", "ok")
    both = {"partition": "gpu,a40", "processes_per_node": 4}
    assert asks(found, **both) == []
    assert asks(found, **both, gpu_type="a100") == [("warn", "gpu_type a100, nodes have a40 (a40)")]
    assert [level for level, _ in asks(found, **both, cpus_per_task=17)] == ["fail", "fail"]
    # sbatch then refuses what one of them cannot take
    strict = cluster(*BOTH, EnforcePartLimits="ALL")
    assert asks(strict, **both, gpu_type="a100") == [
        ("fail", "gpu_type a100, nodes have a40 (a40)")
    ]
    missing = lines_of_partition(found, "gpu,gone")["partition"]
    assert (missing.level, missing.found) == ("fail", "'gone' does not exist; there are gpu, a40")


def test_one_of_two_partitions_is_down():
    """It is a failure only for a profile that names no other partition."""
    down = cluster(*BOTH, state="DOWN")
    found = lines_of_partition(down, "gpu,a40")
    assert (found["partition gpu"].level, found["partition a40"].level) == ("ok", "warn")
    assert lines_of_partition(down, "a40")["partition a40"].level == "fail"


def test_a_profile_fits_all_its_partitions(tmp_path, monkeypatch):
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
def test_gpu_types_in_the_profile(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write_profile(
        "mine", cluster(("gpu", [f"idle|64|512000|gpu:{kind}:7(S:0-1)"])), None, replace=False
    )
    profile = load_profile("mine")
    assert (profile.gpu_type, profile.processes_per_node) == (kind, 7)


def test_a_gpu_type_may_look_like_a_number():
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
def test_a_grid_may_name_several_partitions(given, kept):
    assert Resources(partition=given).partition == kept


@pytest.mark.parametrize(
    "given", ["", ",", "gpu,", "gpu,,a40", "gpu a40", "gpu;rm", "g\npu", ["gpu", 3], 7]
)
def test_invalid_names_of_partitions(given):
    with pytest.raises(ConfigError, match="partition"):
        validate(Resources, {"partition": given}, "grid")


def test_banners_are_skipped_and_counted():
    noisy = lines(facts(unread=("CLUSTER: alpha", "*** news ***")))["other lines"]
    assert (noisy.level, noisy.found) == (
        "warn",
        "2 lines are skipped, for example 'CLUSTER: alpha'",
    )
    text = "CLUSTER: alpha\n" + (OUTPUTS / "nodes.txt").read_text()
    assert lines(facts(text))["partition a100"].level == "ok"
