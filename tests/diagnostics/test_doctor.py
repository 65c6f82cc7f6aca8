"""Checks of Slurm's settings: real outputs, each problem on its own, and the written profile."""

from dataclasses import replace
from pathlib import Path

import pytest

from furnace_hpc.config.cluster import ClusterProfile, load_profile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.diagnostics import slurm
from furnace_hpc.diagnostics.profile_writer import check_new, profile_of, write_profile
from furnace_hpc.diagnostics.report import Check, run_checks
from furnace_hpc.diagnostics.slurm_info import (
    Association,
    SlurmFacts,
    read_associations,
    read_partitions,
    read_version,
)

OUTPUTS = Path(__file__).parents[1] / "slurm" / "outputs"  # of slurm/devcluster, Slurm 22.05.8


def config(**changes: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in (OUTPUTS / "config.txt").read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs} | changes


def facts(nodes: str = "", **changes) -> SlurmFacts:
    nodes = nodes or (OUTPUTS / "nodes.txt").read_text()
    known = SlurmFacts(
        version=(22, 5),
        config=config(),
        partitions=read_partitions((OUTPUTS / "partition.txt").read_text(), nodes),
        associations=(Association("lab", None),),
        gpu_flags={"gpus_per_node": "", "gres": ""},
    )
    return replace(known, **changes)


def lines(found: SlurmFacts, profile: ClusterProfile | None = None) -> dict[str, Check]:
    """The checks of Slurm, by name."""
    section = run_checks("Slurm", *slurm.slurm_checks(found, profile or PROFILE))
    return {check.name: check for check in section.checks}


def lines_of_partition(found: SlurmFacts, partition: str) -> dict[str, Check]:
    return lines(found, PROFILE.model_copy(update={"partition": partition}))


def names_of_level(checks: dict[str, Check], level: str) -> set[str]:
    return {name for name, check in checks.items() if check.level == level}


PROFILE = ClusterProfile(
    name="c",
    executor="slurm",
    partition="a100",
    processes_per_node=4,
    gpu_type="a100",
    cpus_per_task=16,
)


def test_real_outputs_are_parsed():
    names = {p.name: p for p in facts().partitions}
    assert list(names) == ["a100", "preempt", "debug", "closed"]
    a100 = names["a100"]
    assert a100.is_default
    assert a100.is_up
    assert (a100.max_min, a100.nodes, a100.usable) == (7 * 24 * 60, 4, 4)
    assert (a100.cpus, a100.memory_mb, a100.gpus, a100.gpu_type) == (64, 500000, 4, "a100")
    assert (names["preempt"].grace_s, names["preempt"].preempt_mode) == (5, "REQUEUE")
    assert not names["closed"].is_up
    assert read_version("slurm-wlm 22.05.8\n") == (22, 5)
    assert read_version("slurm 24.11.5") == (24, 11)
    assert read_associations("devcluster||normal||||\nlab||normal|||7|5\n") == (
        Association("devcluster", None),
        Association("lab", 5),
    )


def test_a_real_cluster_has_no_failure():
    found = lines(facts())
    assert names_of_level(found, "fail") == set()
    assert names_of_level(found, "warn") == {"KillWait", "ProctrackType", "TaskPlugin"}
    assert (
        found["partition a100"].found
        == "4 of 4 nodes usable: 64 cores, 488 GiB, 4 x a100 each, at most 7 days"
    )


@pytest.mark.parametrize(
    ("changes", "line", "level", "text"),
    [
        ({"AccountingStorageType": "accounting_storage/none"}, "accounting", "warn", "off"),
        ({"MaxArraySize": "0"}, "MaxArraySize", "fail", "arrays are off"),
        ({"SchedulerParameters": "max_array_tasks=5"}, "max_array_tasks", "ok", "5: larger"),
        ({"MaxArraySize": "(null)"}, "MaxArraySize", "warn", "not in Slurm's settings"),
        ({"JobRequeue": "0"}, "JobRequeue", "warn", "only jobs that ask for it are requeued"),
        ({"KillWait": "30 sec"}, "KillWait", "ok", "30 sec"),
        ({"ProctrackType": "proctrack/cgroup"}, "ProctrackType", "ok", "cgroup"),
        ({"TaskPlugin": "task/cgroup,task/affinity"}, "TaskPlugin", "ok", "affinity"),
        (
            {"AccountingStoreFlags": "job_env,job_script"},
            "privacy",
            "warn",
            "every job's env and script",
        ),
        ({"PreemptType": "preempt/none"}, "preemption", "ok", "off"),
    ],
)
def test_each_setting(changes, line, level, text):
    check = lines(facts(config=config(**changes)))[line]
    assert (check.level, bool(check.hint)) == (level, level != "ok")
    assert text in check.found


@pytest.mark.parametrize(
    ("settings", "part", "levels"),
    [
        ({}, {}, {"preemption": "ok", "GraceTime": "ok", "preemption signal": "ok"}),
        (
            {"SlurmctldParameters": "(null)"},
            {},
            {"preemption": "ok", "GraceTime": "ok", "preemption signal": "warn"},
        ),
        (
            {"SlurmctldParameters": "", "PreemptParameters": "send_user_signal"},
            {},
            {"preemption signal": "ok"},
        ),
        ({}, {"grace_s": 0}, {"GraceTime": "warn"}),
        ({}, {"preempt_mode": "CANCEL"}, {"preemption": "warn"}),
        ({}, {"preempt_mode": "SUSPEND"}, {"preemption": "warn"}),
        ({}, {"preempt_mode": "OFF"}, {"preemption": "ok"}),
    ],
)
def test_preemption(settings, part, levels):
    known = facts(config=config(**settings))
    parts = tuple(replace(p, **part) if p.name == "preempt" else p for p in known.partitions)
    found = lines_of_partition(replace(known, partitions=parts), "preempt")
    assert {name: found[name].level for name in levels} == levels


@pytest.mark.parametrize(
    ("update", "line", "text"),
    [
        (
            {"partition": "gone"},
            "partition",
            "'gone' does not exist; there are a100, preempt, debug, closed",
        ),
        ({"partition": "closed"}, "partition closed", "State is not UP"),
        ({"nodes": 5}, "what a run asks", "nodes 5, there are 4"),
        ({"gpus_per_node": 5}, "what a run asks", "gpus_per_node 5, a node has 4"),
        ({"cpus_per_task": 32}, "what a run asks", "128, a node has 64"),
        ({"cpus_per_task": 9, "runs_per_node": 2}, "what a run asks", "x runs_per_node 72, a node"),
        ({"mem_gb": 900}, "what a run asks", "mem_gb 900, a node has 488"),
        ({"gpu_type": "h100"}, "what a run asks", "gpu_type h100, nodes have a100"),
        ({"gpu_flag": "gpus_per_task"}, "GPU flag", "gpus_per_task is refused: no such flag"),
        ({"max_submit_jobs": 3}, "jobs at a time", "at most 3"),
        ({"cpus_per_task": None}, "cpus-per-task", "a rank may get one core"),
        ({"partition": "debug"}, "signal_delay_s", "120 s before a limit of 5 min"),
    ],
)
def test_a_profile_that_does_not_fit(update, line, text):
    flags = {"gpus_per_node": "", "gres": "", "gpus_per_task": "no such flag"}
    check = lines(facts(gpu_flags=flags), PROFILE.model_copy(update=update))[line]
    assert text in check.found
    assert check.level != "ok"
    assert check.hint


def test_a_user_without_a_required_account():
    assert lines(facts(associations=()))["accounts"].level == "fail"


def test_a_partition_without_a_usable_node_fails():
    drained = (OUTPUTS / "nodes.txt").read_text().replace("|idle|", "|drained|")
    assert lines(facts(drained))["partition a100"].level == "fail"
    one_down = drained.replace("|drained|", "|down*|", 4).replace("drained", "mixed")
    assert "3 of 4 nodes usable" in lines(facts(one_down))["partition a100"].found


def test_the_written_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_profile("mine", facts(), None, replace=False)
    profile = load_profile("mine")
    assert profile.cluster_name == "devcluster"
    assert (profile.partition, profile.account) == ("a100", "lab")
    assert (profile.processes_per_node, profile.cpus_per_task) == (4, 16)
    assert (profile.gpus_per_node, profile.gpu_type) == (4, "a100")
    assert names_of_level(lines(facts(), profile), "fail") == set()
    before = path.read_text()
    with pytest.raises(ConfigError, match=" exists. Choose another name"):
        write_profile("mine", facts(), "debug", replace=False)
    assert path.read_text() == before
    write_profile("mine", facts(), "debug", replace=True)
    assert load_profile("mine").signal_delay_s == 37
    with pytest.raises(ConfigError, match="wanted a name"):
        check_new("../mine", replace=False)
    with pytest.raises(ConfigError, match="wanted one of this cluster's: a100"):
        profile_of("x", facts(), "gone")
    assert write_profile("laptop", None, None, replace=False).exists()
    assert load_profile("laptop").executor == "local"
