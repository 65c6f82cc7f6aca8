"""Answers of `sbatch --test-only`: a time, a refusal, or a state that passes."""

import pytest

from furnace_hpc.slurm import client, test_only
from furnace_hpc.slurm.client import CommandResult
from furnace_hpc.slurm.test_only import Estimate, read_estimate, refusal

FAILED = "allocation failure: "
STARTS = (
    "sbatch: Job 7 to start at 2026-11-29T02:30:00 using 8 processors on nodes node[1-2] in "
    "partition a100"
)
OLDER = "sbatch: Job 7 to start at 2026-11-29T02:30:00 using 8 processors on node1"
FEDERATED = (
    "sbatch: Job 7 to start at 2026-11-29T02:30:00 on cluster beta using 8 processors on nodes "
    "node1 in partition a100"
)
NEWER = STARTS.replace(" using", " a using")  # Slurm 26.05
REFUSED = [
    "Requested node configuration is not available",
    "Requested partition configuration not available now",
    "Invalid partition name specified",
    "Requested reservation is invalid",
    "Access denied to requested reservation",
    "Invalid license specification",
    "Invalid generic resource (gres) specification",
    "Requested time limit is invalid (missing or exceeds some limit)",
    "sbatch: unrecognized option '--no-such'",
]
PASSES = [
    "Requested nodes are busy",
    "Required node not available (down, drained or reserved)",
    "Required partition not available (inactive or drain)",
    "Requested reservation not usable now",
    "Unable to contact slurm controller (connect failure)",
    "sbatch took longer than 30 s",
    "sbatch ended with exit code -9",
    "Socket timed out on send/recv operation",
]


@pytest.fixture(autouse=True)
def _up(monkeypatch):
    monkeypatch.setattr(client, "is_partition_up", lambda partition: True)
    monkeypatch.setattr(client, "lacks_nodes_now", lambda partition, nodes: nodes == 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STARTS, Estimate("2026-11-29T02:30:00", "node[1-2]", "a100")),
        (f"banner {STARTS} more", Estimate("2026-11-29T02:30:00", "node[1-2]", "a100")),
        (OLDER, Estimate("2026-11-29T02:30:00", "node1", "")),
        (NEWER, Estimate("2026-11-29T02:30:00", "node[1-2]", "a100")),
        (FEDERATED, Estimate("2026-11-29T02:30:00", "node1", "a100")),
        ("allocation failure: Requested nodes are busy", None),
        ("Job 7 to start at Unknown using 8 processors on nodes n1", None),
        ("", None),
    ],
)
def test_when_a_job_would_start(text, expected):
    assert read_estimate(text) == expected


@pytest.mark.parametrize("words", REFUSED)
def test_words_of_a_refusal(words):
    assert refusal(CommandResult(False, "", f"{FAILED}{words}"), "a100", 2).endswith(words[8:])


@pytest.mark.parametrize("words", PASSES)
def test_what_passes_is_no_refusal(words):
    prefix = "" if words.startswith("sbatch") else FAILED
    assert refusal(CommandResult(False, "", f"{prefix}{words}"), "a100", 2) == ""


@pytest.mark.parametrize("ok", [True, False])
def test_a_start_time_is_no_refusal(ok):
    """Whatever the exit code is."""
    assert refusal(CommandResult(ok, "", STARTS), None, 1) == ""


def test_a_partition_that_is_down_is_no_refusal(monkeypatch):
    monkeypatch.setattr(client, "is_partition_up", lambda partition: partition != "closed")
    answer = CommandResult(False, "", f"{FAILED}{REFUSED[1]}")
    assert refusal(answer, "closed", 1) == ""
    assert refusal(answer, "a100", 1) == REFUSED[1]


def test_drained_nodes_are_no_refusal():
    """Slurm has the same words for them as for jobs that can never run."""
    answer = CommandResult(False, "", f"{FAILED}{REFUSED[0]}")
    assert refusal(answer, "a100", 4) == ""
    assert refusal(answer, "a100", 5) == REFUSED[0]


@pytest.mark.parametrize(
    ("states", "nodes", "lacks"),
    [
        ("idle mix alloc", 3, False),
        ("idle mix alloc", 4, False),  # there are no four nodes
        ("idle drain down*", 2, True),
        ("idle drain down*", 1, False),
        ("drng maint boot", 1, True),
        ("", 1, False),
    ],
)
def test_nodes_that_are_up(tmp_path, monkeypatch, states, nodes, lacks):
    lines = [f"n{number}|gpu*|{state}" for number, state in enumerate(states.split())]
    lines += ["other|cpu|idle", "n0|gpu*|idle"] if states.startswith("idle") else []
    (tmp_path / "sinfo").write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert client.lacks_nodes_now(None, nodes) is lacks


def test_states_of_partitions(tmp_path, monkeypatch):
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'gpu*|up'\necho 'a40|down'\necho 'b|inact'\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert client.is_partition_up(None)
    assert client.is_partition_up("gpu,a40")
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'a40|down'\necho 'b|inact'\n")
    assert not client.is_partition_up("a40,b")
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    assert client.is_partition_up("a40")  # Slurm does not answer


def test_options_of_sbatch(tmp_path, monkeypatch):
    text = (
        "  -H, --hold   submit\\n      --exclusive[=user] x\\n      --site-flag=value  of a plugin"
    )
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\n[ "$1" = --help ] && printf "%b" "{text}"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert client.sbatch_options.__wrapped__() == {"hold", "exclusive", "site-flag"}


def test_nodes_that_register_are_asked_for_again(monkeypatch):
    """The controller has just started, and no node has registered yet."""
    answers = [CommandResult(False, "", FAILED + REFUSED[0]), CommandResult(True, "", STARTS)]
    monkeypatch.setattr(client, "test_only", lambda script: answers.pop(0))
    monkeypatch.setattr(test_only, "_REGISTERED_S", 0.0)
    assert test_only.ask("#!/bin/sh").ok
    answers = [CommandResult(False, "", "Invalid account")]
    assert not test_only.ask("#!/bin/sh").ok
    assert answers == []
