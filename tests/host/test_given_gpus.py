"""If torch cannot use the GPUs of a job, one run of the submission fails and no other begins."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from login_study import specs
from status_study import RUNS, SMALL, answer, see, submit

from furnace_hpc.host import gpu_check
from furnace_hpc.launch.follow_up import remaining_rows
from furnace_hpc.monitor.run_status import StatusResolver
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.state import RunState

WHY = "this rank was given GPUs 0,1, and torch 2.13.0+cpu can use none"


@pytest.fixture
def stand_ins(tmp_path, monkeypatch) -> Path:
    """Make a stand-in for the ranks' Python, and one for scancel. Both log their calls."""
    for name, script in (
        ("scancel", 'echo "$@" >> "$0.calls"'),
        ("python", 'echo x >> "$0.calls"; . "$0.answer"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    return tmp_path


def fake_python(stand_ins: Path, words: str, code: int) -> list[str]:
    (stand_ins / "python.answer").write_text(f'echo "{words}"\nexit {code}\n')
    return [str(stand_ins / "python")]


def num_calls(stand_ins: Path, name: str = "python") -> int:
    path = stand_ins / f"{name}.calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_first_run_fails_and_others_do_not_begin(stand_ins):
    made = submit(GridFolder(stand_ins / "study"), {"5": range(4), "6": ()})
    python = fake_python(stand_ins, WHY, gpu_check.EXIT_UNUSABLE)
    may = [
        gpu_check.find_refusal(str(made.path), RUNS[row], f"5_{row}", python) for row in range(4)
    ]
    assert may[0] == ""
    assert set(may[1:]) == {gpu_check.stop_reason(str(made.path))}
    assert WHY in may[1]
    assert RUNS[0] in may[1]
    assert num_calls(stand_ins) == 1
    # not the follow-up job: it makes the table
    assert (stand_ins / "scancel.calls").read_text() == "--state=PENDING 5\n"
    # the same job after a requeue
    assert gpu_check.find_refusal(str(made.path), RUNS[0], "5_0", python) == ""


def test_of_many_checks_at_once_one_run_begins(stand_ins):
    made = submit(GridFolder(stand_ins / "study"), {"5": range(4)})
    python = fake_python(stand_ins, WHY, gpu_check.EXIT_UNUSABLE)
    with ThreadPoolExecutor(4) as pool:
        may = list(
            pool.map(
                lambda row: gpu_check.find_refusal(str(made.path), RUNS[row], f"5_{row}", python),
                range(4),
            )
        )
    assert may.count("") == 1
    assert num_calls(stand_ins, "scancel") == 1


@pytest.mark.parametrize(("words", "code", "asks"), [("", 0, 1), ("ImportError", 1, 3)])
def test_all_begin_if_gpus_work_or_are_unknown(stand_ins, words, code, asks):
    made = submit(GridFolder(stand_ins / "study"), {"5": range(3)})
    python = fake_python(stand_ins, words, code)
    assert [
        gpu_check.find_refusal(str(made.path), RUNS[row], f"5_{row}", python) for row in range(3)
    ] == [""] * 3
    assert num_calls(stand_ins) == asks
    assert gpu_check.stop_reason(str(made.path)) == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "NoDevFiles"},
        {"DS_ACCELERATOR": "cpu"},
    ],
)
def test_job_without_gpus_is_not_checked(stand_ins, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = submit(GridFolder(stand_ins / "study"), {"5": [0]})
    python = fake_python(stand_ins, WHY, gpu_check.EXIT_UNUSABLE)
    assert gpu_check.find_refusal(str(made.path), RUNS[0], "5_0", python) == ""
    assert num_calls(stand_ins) == 0


def test_one_broken_node_stops_no_other_run(stand_ins):
    """The GPUs of the first node work, those of the second do not."""
    made = submit(GridFolder(stand_ins / "study"), {"5": range(2)})
    for row, words, code in ((0, "", 0), (1, WHY, gpu_check.EXIT_UNUSABLE)):
        python = fake_python(stand_ins, words, code)
        assert gpu_check.find_refusal(str(made.path), RUNS[row], f"5_{row}", python) == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"usable": true}', "\x00", '{"a": 1}'])
def test_damaged_gpus_json_stops_no_run(tmp_path, text):
    (tmp_path / "gpus.json").write_text(text)
    assert gpu_check.stop_reason(str(tmp_path)) == ""


def test_runs_that_did_not_begin_stay_new(stand_ins):
    folder = GridFolder(stand_ins / "study")
    made = submit(folder, {"5": [0, 1], "6": ()})
    gpu_check.find_refusal(
        str(made.path), RUNS[0], "5_0", fake_python(stand_ins, WHY, gpu_check.EXIT_UNUSABLE)
    )
    known = answer(_5_0="FAILED", _5_1="CANCELLED by 0", _6="COMPLETED")
    for row in (1, 2):  # a cancelled one, and one of a later wave
        status = see(folder, known, row)
        assert status.state is RunState.NEW
        assert status.reason == gpu_check.stop_reason(str(made.path))
    assert remaining_rows(made, folder, 9, StatusResolver(folder, known)) == {}
    (made.path / "gpus.json").unlink()
    assert set(remaining_rows(made, folder, 9, StatusResolver(folder, known))) >= {SMALL}
    assert len(specs()) == 4


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f"}, "GPU-8f"),
        ({"CUDA_VISIBLE_DEVICES": "-1", "SLURM_GPUS_ON_NODE": "2"}, ""),
        ({"SLURM_GPUS_ON_NODE": "2"}, "0,1"),
        ({"SLURM_GPUS_ON_NODE": "x"}, ""),
        ({"SLURM_JOB_GPUS": "4,5", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "4,5"),
        ({"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cpu"}, ""),
    ],
)
def test_given_gpus(variables, given):
    assert gpu_check.allocated_gpus(variables) == given


def test_real_check_with_the_ranks_python(stand_ins, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use a GPU here")
    made = submit(GridFolder(stand_ins / "study"), {"5": range(2)})
    assert gpu_check.find_refusal(str(made.path), RUNS[0], "5_0", [sys.executable]) == ""
    found = json.loads((made.path / "gpus.json").read_text())
    assert (found["usable"], found["run_id"]) == (False, RUNS[0])
    assert found["error"].startswith(
        f"this rank was given GPUs 0,1, and torch {torch.__version__} can use none"
    )
    assert gpu_check.find_refusal(str(made.path), RUNS[1], "5_1", [sys.executable]).startswith(
        "not started: torch cannot use"
    )
