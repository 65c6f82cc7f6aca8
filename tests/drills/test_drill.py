"""The drill's verdict on runs, and a real drill in the local queue."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from login_study import command

from furnace_hpc.config.cluster import ClusterProfile, load_profile, profile_names
from furnace_hpc.drill import Drill, _silent_profile
from furnace_hpc.drills.faults import Disturbance, disturbances, signal_rank, stages
from furnace_hpc.drills.outcome import Outcome, read_outcome
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import RunFolder, write_json
from furnace_hpc.runs.state import RunState, read_status

INTERVAL = 10
WARNED = Disturbance("terminated", "TERM", True, signal_rank(0, signal.SIGTERM))
KILLED = Disturbance("killed", "KILL", False, signal_rank(0, signal.SIGKILL))
RESULT: dict[str, Any] = dict.fromkeys(
    (
        "steps",
        "selected_step",
        "num_parameters",
        "world_size",
        "num_threads",
        "attempts",
        "seed",
        "zero_stage",
    ),
    40,
) | dict.fromkeys(("train_s", "wall_s", "samples_per_s", "peak_memory_gib"), 1.0)
RESULT |= dict.fromkeys(
    ("run_id", "variant", "device", "precision", "data_fingerprint", "code_hash"), "x"
)


def run(
    path: Path, *attempts: tuple[int, int], sha256: str = "same", other_from: int = 99
) -> RunFolder:
    """Write a finished run whose attempts trained these steps, one second per step."""
    folder, now_s = RunFolder(path), 0.0
    for number, (first, last) in enumerate(attempts, 1):
        write_json(
            folder.attempt(number), {"attempt": number, "reason": "stopped", "end_unix_s": 1.0}
        )
        lines = []
        for step in range(first, last + 1):
            now_s += 1
            loss = 1 / step + (step >= other_from)
            lines.append(
                {
                    "step": step,
                    "kind": "train",
                    "train/loss": loss,
                    "time_unix_s": now_s,
                    "step_time_s": now_s,
                }
            )
        folder.metrics(number).parent.mkdir(exist_ok=True)
        folder.metrics(number).write_text("".join(json.dumps(line) + "\n" for line in lines))
        now_s += 5
    known = {"parameters_sha256": sha256, "metrics": {}, "versions": {}, "commit": None}
    write_json(folder.result, RESULT | known)
    return folder


@pytest.fixture
def calm(tmp_path: Path) -> RunFolder:
    return run(tmp_path / "calm", (1, 40))


def outcome(disturbed: RunFolder, calm: RunFolder, way: Disturbance, problem: str = "") -> Outcome:
    return read_outcome(disturbed, calm, way, problem)


def test_nothing_lost(tmp_path: Path, calm: RunFolder):
    found = outcome(run(tmp_path / "a", (1, 14), (15, 40)), calm, WARNED)
    assert (found.lost_steps, found.recovery_s, found.problem, found.is_good(INTERVAL)) == (
        0,
        6.0,
        "",
        True,
    )


def test_the_allowed_loss_depends_on_the_warning(tmp_path: Path, calm: RunFolder):
    disturbed = run(tmp_path / "a", (1, 14), (11, 40))
    assert outcome(disturbed, calm, KILLED).lost_steps == 4
    assert outcome(disturbed, calm, KILLED).recovery_s == 10.0, "until the first new step"
    assert outcome(disturbed, calm, KILLED).is_good(INTERVAL)
    assert not outcome(disturbed, calm, WARNED).is_good(INTERVAL)
    assert "LOST" in outcome(disturbed, calm, WARNED).cells(INTERVAL)


def test_a_restart_at_step_0_is_a_loss(tmp_path: Path, calm: RunFolder):
    found = outcome(run(tmp_path / "a", (1, 30), (1, 40)), calm, KILLED)
    assert (found.lost_steps, found.is_good(INTERVAL)) == (30, False)


def test_another_result_is_reported(tmp_path: Path, calm: RunFolder):
    found = outcome(run(tmp_path / "a", (1, 14), (15, 40), sha256="other"), calm, WARNED)
    assert found.problem == "parameters differ: other, undisturbed same"
    found = outcome(run(tmp_path / "b", (1, 14), (15, 40), other_from=20), calm, WARNED)
    assert (found.problem, found.is_good(INTERVAL)) == (
        "the loss curve differs from step 20 on",
        False,
    )


def test_a_missing_disturbance_is_not_good(tmp_path: Path, calm: RunFolder):
    found = outcome(run(tmp_path / "a", (1, 40)), calm, WARNED)
    assert "it ended before the disturbance" in found.problem
    assert not found.is_good(INTERVAL)
    found = outcome(
        run(tmp_path / "b", (1, 14), (15, 40)), calm, WARNED, "it could not be done: srun says no"
    )
    assert not found.is_good(INTERVAL)


def test_names_of_disturbances(tmp_path: Path):
    for executor in ("local", "slurm"):
        names = [way.name for way in disturbances(executor)]
        assert len(set(names)) == len(names)
    done = command("drill", tmp_path, "--cluster", "local", "--only", "earthquake")
    assert done.returncode == 2
    assert (
        "--only got 'earthquake', wanted one of terminated, interrupted, rank_killed" in done.stderr
    )


def test_what_stops_all_runs_has_a_stage_of_its_own():
    """Beside it, another run would be stopped before its own disturbance."""
    found = stages(disturbances("local"), "calm")
    assert found == [
        ["calm", "terminated", "rank_killed", "rank_frozen"],
        ["interrupted"],
        ["all_killed"],
    ]
    on_slurm = disturbances("slurm")
    assert stages(on_slurm, "calm") == [["calm", *(way.name for way in on_slurm)]]
    only = [way for way in disturbances("local") if way.name == "interrupted"]
    assert stages(only, "calm") == [["calm"], ["interrupted"]]


def test_each_stage_is_submitted_until_it_has_ended(tmp_path: Path, monkeypatch):
    """The run of the last stage needs two submissions."""
    ways = [way for way in disturbances("local") if way.name in ("terminated", "interrupted")]
    drill = Drill(tmp_path / "drill", ways, 120, random.Random(0))
    said: list[list[str]] = []

    def submit(options: list[str], log: Path) -> None:
        said.append([options[-1], log.name])
        names = [options[at + 1] for at, word in enumerate(options) if word == "--variant"]
        for name in names:
            again = len(said) > 2
            if name != "interrupted" or again:
                run(tmp_path / "drill" / f"{name}-s0-0123abcd", (1, 40))

    monkeypatch.setattr(drill, "_submit", submit)
    drill.run(["--grid", "g"])
    assert said == [
        ["terminated", "submit-1.log"],
        ["interrupted", "submit-2.log"],
        ["interrupted", "submit-3.log"],
    ]


def test_a_run_that_is_being_killed_has_not_ended(tmp_path: Path):
    """After a SIGKILL its holder may live for a moment. Then another submission resumes it."""
    drill = Drill(tmp_path / "drill", [], 120, random.Random(0))
    alive = RunFolder(tmp_path / "drill" / "calm-s0-0123abcd")
    holder = lifecycle.holder()
    write_json(alive.attempt(1), {"attempt": 1, "holder": holder, "start_unix_s": 1.0})
    assert read_status(alive).state is RunState.RUNNING
    assert not drill._has_ended(["calm"])


# Seen by `submit`, which the drill starts. Ranks do not depend on it.
EIGHT_CORES = "import os\nos.sched_getaffinity = lambda pid: set(range(8))\n"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(1500)
def test_a_real_drill(tmp_path: Path, small_root: Path):
    """Ctrl-C reaches `submit` even if SIGINT is ignored, as under nohup. Four slots train."""
    (tmp_path / "site").mkdir(mode=0o700)
    (tmp_path / "site" / "sitecustomize.py").write_text(EIGHT_CORES)
    words = ["--cluster", "local", "--data-root", str(small_root), "--steps", "120"]
    drill = shlex.join([sys.executable, "-m", "furnace_hpc.drill", *words])
    done = subprocess.run(
        ["bash", "-c", f"trap '' INT; exec {drill}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=1480,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended = {"terminated": "stopped", "interrupted": "stopped", "rank_killed": "killed"}
    for name, reason in (ended | {"rank_frozen": "hang"}).items():
        assert re.search(rf"^{name} +2 +{reason} ", done.stdout, re.MULTILINE), done.stdout
    said = "5 of 5 disturbances lost at most the allowed steps and changed no result"
    assert said in done.stdout
    [log] = tmp_path.glob("runs/drills/*/submit-1.log")
    assert "4 at a time, on CPU" in log.read_text()


@pytest.mark.parametrize("name", [*profile_names(), "full"])
def test_a_drill_notifies_nobody(tmp_path, name):
    """The profile without `notify` and `trackers` is the same in all else."""
    more = {"partition": "a,b", "sbatch": {"exclusive": True, "reservation": "x"}}
    full = {"name": "full", "executor": "slurm", "runs_per_node": "auto", "gpus_per_node": 4}
    plain = ClusterProfile(**full, **more) if name == "full" else load_profile(name)
    assert _silent_profile(tmp_path, plain) == plain.name
    webhook = tmp_path / "webhook"
    webhook.touch(mode=0o600)
    webhook.write_text("https://example.org/x")
    content = plain.model_dump() | {"notify": str(webhook), "trackers": [{"to": "tensorboard"}]}
    copy = _silent_profile(tmp_path, ClusterProfile.model_validate(content))
    assert load_profile(copy) == plain
