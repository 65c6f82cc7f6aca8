"""The whole batch script under bash, with stand-ins for Slurm's commands."""

import os
import shlex
from pathlib import Path

import pytest
from batch_study import execute
from login_study import finish, grid, planned, specs

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.host import lifecycle
from furnace_hpc.launch.batch_script import rank_command
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.snapshot import source


def requeued(tools: Path) -> list[str]:
    return (tools / "requeued").read_text().splitlines() if (tools / "requeued").exists() else []


@pytest.mark.parametrize(
    ("words", "code", "status", "verdict", "reason"),
    [
        ("done done", 0, 0, "done", "done"),
        pytest.param("done", 1, 0, "done", "done", marks=pytest.mark.slow),
        ("stopped stopped", 85, 1, "requeue", "stopped"),
        ("", 1, 1, "requeue", "infrastructure"),
        ("crash peer_lost", 1, 1, "fail", "crash"),
        ("entered", 137, 1, "fail", "killed"),
        pytest.param("entered", 0, 1, "fail", "killed", marks=pytest.mark.slow),
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


RECORD_VARIABLES = (
    'printf "%s|" "$ATEN_CPU_CAPABILITY" "$ONEDNN_MAX_CPU_ISA" "$MKL_CBWR" "$OMP_NUM_THREADS" '
    '> "$STAND_IN/variables"'
)


@pytest.mark.parametrize(
    ("portable", "values"), [(True, "avx2|AVX2|COMPATIBLE|1|"), (False, "|||8|")]
)
def test_ranks_of_a_portable_run_get_its_variables(tmp_path, monkeypatch, portable, values):
    """They replace those of the user and of the profile's setup lines."""
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"):
        monkeypatch.delenv(name, raising=False)
    done, *_, tools = execute(
        tmp_path,
        "done",
        0,
        then=RECORD_VARIABLES,
        asked=grid(base={**grid().base, "portable": portable}),
        setup=("export OMP_NUM_THREADS=8",),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tools / "variables").read_text() == values
