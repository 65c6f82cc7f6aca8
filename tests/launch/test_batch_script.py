"""The whole batch script under bash, with stand-ins for Slurm's commands."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from login_study import finish, grid, planned, read_rows, specs

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.arrays import Limits, next_wave
from furnace_hpc.launch.batch_script import rank_command
from furnace_hpc.launch.slurm_array import batch_text
from furnace_hpc.launch.submission import write_submission
from furnace_hpc.runs.folder import GridFolder, RunFolder
from furnace_hpc.runs.snapshot import source


def stand_in(path: Path, script: str) -> None:
    path.write_text("#!/bin/bash\n" + script)
    path.chmod(0o755)


# The stand-in for srun drops its own options and records the rest. The environment has the ranks'
# verdicts and exit code.
SRUN = r"""
while [[ $1 == -* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
printf '%s\n' "$@" > "$STAND_IN/ranks"
printf '%s' "$FURNACE_RUN_DIR|$FURNACE_ATTEMPT|$SUBMITIT_EXECUTOR" > "$STAND_IN/environment"
rank=0
for word in $WORDS; do
  printf '{"verdict": "%s", "step": 5, "unix_s": 1}' "$word" \
    > "$FURNACE_RUN_DIR/verdicts/$FURNACE_ATTEMPT-$rank.json"
  rank=$((rank + 1))
done
[[ $WORDS == done* ]] && echo '{}' > "$FURNACE_RUN_DIR/result.json"
printf %s "$PYTHONPATH" > "$STAND_IN/path"
eval "$THEN"
exit "$CODE"
"""


def execute(
    tmp_path: Path,
    words: str,
    code: int,
    row: int = 2,
    meanwhile: Callable[[], Any] = lambda: None,
    then: str = "",
    **facts: Any,
):
    """Run the batch script of a whole submission as Slurm would run one array element."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    stand_in(tools / "srun", SRUN)
    stand_in(tools / "scontrol", 'echo "$*" >> "$STAND_IN/requeued"\n')
    stand_in(tools / "sleep", "exit 0\n")
    plan = planned(
        tmp_path / "runs of 'mine'",
        grid(),
        ClusterProfile(name="c", executor="slurm", gpu_flag=None, **facts),
    )
    submission = write_submission(plan).path
    (submission / "payload.pkl").write_bytes(b"payload")
    meanwhile()
    ids = {"SLURM_ARRAY_JOB_ID": "91", "SLURM_ARRAY_TASK_ID": str(row), "SLURM_JOB_ID": "93"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "FURNACE_"))
    }
    environment = (
        kept | ids | {"WORDS": words, "CODE": str(code), "STAND_IN": str(tools), "THEN": then}
    )
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    [array] = next_wave(plan.shapes, Limits())
    script = batch_text(plan, array, submission)
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, RunFolder(Path(read_rows(submission)[row]["run_dir"])), submission, tools


def requeued(tools: Path) -> list[str]:
    return (tools / "requeued").read_text().splitlines() if (tools / "requeued").exists() else []


@pytest.mark.parametrize(
    ("words", "code", "status", "verdict", "reason"),
    [
        ("done done", 0, 0, "done", "done"),
        ("done", 1, 0, "done", "done"),
        ("stopped stopped", 85, 1, "requeue", "stopped"),
        ("", 1, 1, "requeue", "infrastructure"),
        ("crash peer_lost", 1, 1, "fail", "crash"),
        ("entered", 137, 1, "fail", "killed"),
        ("entered", 0, 1, "fail", "killed"),
    ],
)
def test_the_script_begins_and_ends_an_attempt(tmp_path, words, code, status, verdict, reason):
    done, run, submission, tools = execute(tmp_path, words, code)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout == f"attempt 1 ended: {verdict} (srun exit code {code})\n"
    assert requeued(tools) == (["requeue 91_2"] if verdict == "requeue" else [])
    record = lifecycle.read_attempt(str(run.path), 1)
    assert (record["job_id"], record["reason"], record["exit_code"]) == ("91_2", reason, code)
    assert lifecycle.is_alive(record["holder"]) is False
    assert (tools / "environment").read_text() == f"{run.path}|1|slurm"
    assert (submission / "91_2_submitted.pkl").read_bytes() == b"payload"
    ranks = (tools / "ranks").read_text().splitlines()
    profile = ClusterProfile(name="c", executor="slurm")
    code = run.path.parent / "code" / source().snapshot_hash
    assert ranks == [
        *shlex.split(rank_command(profile, code)),
        "-u",
        "-m",
        "submitit.core._submit",
        str(submission),
    ]


def test_a_requeued_element_begins_the_next_attempt(tmp_path):
    _, run, _, _ = execute(tmp_path, "stopped", 85)
    done, same, _, _ = execute(tmp_path, "done", 0)
    assert (done.returncode, same) == (0, run)
    assert [lifecycle.read_attempt(str(run.path), number)["reason"] for number in (1, 2)] == [
        "stopped",
        "done",
    ]


def test_an_element_of_a_done_run_starts_nothing(tmp_path):
    """Its exit code is 0."""
    folder = GridFolder(tmp_path / "runs of 'mine'" / "study")
    done, run, _, tools = execute(tmp_path, "done", 0, meanwhile=lambda: finish(specs()[2], folder))
    assert done.returncode == 0
    assert "is not started: it is done already" in done.stderr
    assert not (tools / "ranks").exists()
    assert not run.attempt(2).exists()


@pytest.mark.parametrize("line", ["false", "module load nothing", "source /nowhere/env.sh"])
def test_a_failed_setup_line_ends_the_job(tmp_path, line):
    """The batch log names the line."""
    done, run, _, tools = execute(tmp_path, "done", 0, setup=("export FINE=1", line))
    assert done.returncode != 0
    assert f"this line of the profile's setup failed: {line}" in done.stdout
    assert not (tools / "ranks").exists()
    assert not run.attempt(1).exists()


def test_a_run_with_a_live_holder_starts_no_ranks(tmp_path):
    plan = planned(tmp_path / "runs of 'mine'", grid())
    lifecycle.begin(str(plan.runs[2].folder.path), {})
    done, run, _, tools = execute(tmp_path, "done", 0)
    assert done.returncode == 1
    assert f"attempt 1 is held by process {os.getpid()}" in done.stderr
    assert not (tools / "ranks").exists()
    assert sorted(path.name for path in run.attempts.iterdir()) == ["1.json"]


@pytest.mark.parametrize(
    "part", ["", "study", "study/submissions/1/payload.pkl", "study/submissions/1/rows.jsonl"]
)
def test_files_that_others_can_change_are_not_run(tmp_path, part):
    place = tmp_path / "runs of 'mine'" / part
    done, run, _, tools = execute(
        tmp_path, "done", 0, meanwhile=lambda: place.chmod(place.stat().st_mode | 0o020)
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert str(place) in done.stdout
    assert "chmod go-w" in done.stdout
    assert not run.path.exists()
    assert not (tools / "ranks").exists()


def test_group_in_the_profile_trusts_the_group(tmp_path):
    """Files that the group can change are run."""

    def open_to_group() -> None:
        for place in (tmp_path / "runs of 'mine'").rglob("*"):
            place.chmod(place.stat().st_mode | 0o020)

    done, run, _, _ = execute(tmp_path, "done", 0, meanwhile=open_to_group, group=True)
    assert done.returncode == 0, done.stdout
    assert run.result.stat().st_mode & 0o777 == 0o660
