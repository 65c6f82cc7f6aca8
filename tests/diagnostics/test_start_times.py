"""`doctor` compares when a run would start: options, answers and the suggestion."""

import re
from dataclasses import replace
from datetime import datetime, timedelta

from test_doctor_partitions import cluster

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.diagnostics.queue import start_times
from furnace_hpc.diagnostics.queue.start_times import MAX_TESTS, options, start_section
from furnace_hpc.diagnostics.report import Check
from furnace_hpc.slurm.client import CommandResult

PROFILE = {
    "name": "c",
    "executor": "slurm",
    "partition": "gpu",
    "nodes": 2,
    "processes_per_node": 2,
    "gpus_per_node": 2,
    "mem_gb": 100,
    "sbatch": {"exclusive": True, "reservation": "big day"},
}
NODES = ["idle|64|512000|gpu:a100:4"] * 4
FACTS = cluster(("gpu", NODES), ("debug", NODES), ("small", ["idle|8|8000|(null)"] * 9))


def names(**changes) -> list[str]:
    profile = ClusterProfile.model_validate(PROFILE | changes)
    return [option.name for option in options(FACTS, profile)]


def test_partitions_and_numbers_of_nodes():
    assert names() == ["gpu 2 x 2", "gpu 1 x 4", "gpu 4 x 1", "debug 2 x 2"]
    # 8 GPUs of a node, or 8 nodes, do not exist here
    assert names(processes_per_node=4, gpus_per_node=4) == ["gpu 2 x 4", "gpu 4 x 2", "debug 2 x 4"]


def test_a_list_of_partitions_is_split():
    assert names(partition="gpu,debug", nodes=1, processes_per_node=1, gpus_per_node=1) == [
        *("gpu,debug 1 x 1", "gpu 1 x 1", "debug 1 x 1")
    ]


def test_the_default_partition_needs_no_key():
    assert names(partition=None)[:2] == ["default 2 x 2", "default 1 x 4"]


def test_short_partitions_are_no_alternative():
    """--test-only of Slurm 22.05 accepts an hour in a partition of five minutes."""
    short = [
        replace(part, max_min=5) if part.name == "debug" else part for part in FACTS.partitions
    ]
    facts = replace(FACTS, partitions=tuple(short))
    profile = ClusterProfile.model_validate(PROFILE)
    assert [option.name for option in options(facts, profile)][3:] == []
    found = options(facts, profile.model_copy(update={"partition": "debug"}))
    assert {option.minutes for option in found} == {5}


def test_gpus_and_memory_are_the_same():
    profile = ClusterProfile.model_validate(PROFILE | {"gpus_per_node": 4, "processes_per_node": 1})
    found = {
        option.name: option.profile.model_dump(include={"gpus_per_node", "mem_gb"})
        for option in options(cluster(("gpu", ["idle|64|512000|gpu:a100:8"] * 4)), profile)
    }
    assert found == {
        "gpu 2 x 1": {"gpus_per_node": 4, "mem_gb": 100},
        "gpu 1 x 2": {"gpus_per_node": 8, "mem_gb": 200},
    }


def in_s(seconds: float, partition: str = "gpu") -> CommandResult:
    when = (datetime.now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")
    text = f"sbatch: Job 1 to start at {when} using 8 processors on nodes n1 in partition"
    return CommandResult(True, "", f"{text} {partition}")


def no(words: str) -> CommandResult:
    return CommandResult(False, "", f"allocation failure: {words}")


def section(monkeypatch, answers: dict[str, CommandResult]) -> list[Check]:
    """The section for answers by partition and nodes."""
    scripts = []

    def test_only(script: str) -> CommandResult:
        scripts.append(script)
        partition, nodes = (
            re.search(rf"--{key}=(\S+)", script)[1] for key in ("partition", "nodes")
        )
        return answers[f"{partition} {nodes}"]

    monkeypatch.setattr(start_times.client, "test_only", test_only)
    monkeypatch.setattr(start_times.client, "is_partition_up", lambda partition: True)
    monkeypatch.setattr(start_times.client, "lacks_nodes_now", lambda partition, nodes: False)
    found = start_section(FACTS, ClusterProfile.model_validate(PROFILE))
    assert len(scripts) == len(answers)
    assert all("#SBATCH '--reservation=big day'" in script for script in scripts)
    assert all("#SBATCH --time=60\n" in script for script in scripts)
    return list(found.checks)


def test_the_soonest_is_suggested(monkeypatch):
    answers = {"gpu 2": in_s(7500), "gpu 1": in_s(5), "gpu 4": in_s(750)}
    answers["debug 2"] = no("Requested time limit is invalid (missing or exceeds some limit)")
    checks = section(monkeypatch, answers)
    assert [check.name for check in checks] == [
        *("gpu 1 x 4", "gpu 4 x 1", "gpu 2 x 2", "debug 2 x 2", "suggestion")
    ]
    assert checks[0].found == "now, on n1"
    assert re.fullmatch(r"in 12 min 2\d s, on n1|in 12 min 30 s, on n1", checks[1].found)
    assert checks[3].found.startswith("Requested time limit is invalid")
    assert {check.level for check in checks} == {"ok"}
    assert re.fullmatch(
        r"a run of 60 minutes starts 2 h 0[45] min sooner with nodes: 1, processes_per_node: 4, "
        r"gpus_per_node: 4, mem_gb: 200. Set this in the profile",
        checks[-1].found,
    )


def test_another_partition_is_also_a_key_of_the_grid(monkeypatch):
    answers = {"gpu 2": in_s(7500), "gpu 1": in_s(7500), "gpu 4": in_s(7500), "debug 2": in_s(0)}
    found = section(monkeypatch, answers)[-1].found
    assert found.endswith("partition: debug. Set this in the profile, or in resources of the grid")


def test_the_profile_itself_wins_a_tie(monkeypatch):
    answers = {name: in_s(8) for name in ("gpu 1", "gpu 4", "debug 2")}
    checks = section(monkeypatch, answers | {"gpu 2": in_s(10)})
    assert checks[-1].found == "a run of 60 minutes starts soonest with the profile as it is"


def test_a_profile_that_slurm_refuses_fails(monkeypatch):
    answers = dict.fromkeys(("gpu 1", "gpu 4", "debug 2"), in_s(0))
    [*_, refused, suggestion] = section(
        monkeypatch, answers | {"gpu 2": no("Requested reservation is invalid")}
    )
    assert (refused.name, refused.level) == ("gpu 2 x 2", "fail")
    assert "fix `reservation` in `sbatch`" in refused.hint
    assert (
        "a run of 60 minutes has no start time with the profile as it is, but one with"
        in suggestion.found
    )


def test_busy_nodes_are_no_failure(monkeypatch):
    answers = dict.fromkeys(("gpu 1", "gpu 2", "gpu 4", "debug 2"), no("Requested nodes are busy"))
    checks = section(monkeypatch, answers)
    assert [check.level for check in checks] == ["ok"] * 4


def test_questions_are_bounded(monkeypatch):
    many = cluster(*((f"p{number}", NODES) for number in range(40)))
    calls = []

    def test_only(script: str) -> CommandResult:
        calls.append(script)
        return in_s(0)

    monkeypatch.setattr(start_times.client, "test_only", test_only)
    profile = ClusterProfile(name="c", executor="slurm", partition="p0")
    start_section(many, profile)
    assert len(calls) == MAX_TESTS


def test_a_slow_slurm_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(start_times, "PATIENCE_S", 0)
    monkeypatch.setattr(start_times.client, "test_only", lambda script: slow())
    checks = start_section(FACTS, ClusterProfile.model_validate(PROFILE)).checks
    assert [check.name for check in checks] == ["not known"]


def slow() -> CommandResult:
    import time

    time.sleep(0.3)
    return in_s(0)
