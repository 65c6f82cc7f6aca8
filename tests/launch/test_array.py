"""The text of an array's batch script, flag by flag."""

import difflib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from login_study import finish, grid, planned

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.launch.arrays import Array, Limits, next_wave, ranges
from furnace_hpc.launch.batch_script import (
    BATCH,
    array_parameters,
    check_function,
    follow_up_parameters,
)
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.launch.slurm_array import batch_text
from furnace_hpc.slurm.client import require_slurm

GOLDEN = Path(__file__).parents[1] / "support" / "golden" / "array.sbatch"
FULL = {
    "name": "big",
    "executor": "slurm",
    "nodes": 2,
    "processes_per_node": 4,
    "gpus_per_node": 4,
    "gpu_type": "a100",
    "partition": "gpu,long",
    "account": "proj 1",
    "qos": "normal",
    "constraint": "a100&ib",
    "cpus_per_task": 16,
    "mem_gb": 480,
    "wckey": "key",
    "signal_delay_s": 180,
    "array_parallelism": 3,
    "setup": ["module load cuda/12.8", 'echo "$HOSTNAME"'],
    "srun_args": ["--mpi=none"],
    "network_interface": "ib0",
}


def array_of(plan: Plan) -> Array:
    [array] = next_wave(plan.shapes, Limits())
    return array


def text_of(plan: Plan, submission: Path) -> str:
    return batch_text(plan, array_of(plan), submission)


def text(tmp_path: Path, **changes) -> str:
    profile = ClusterProfile.model_validate(FULL | changes)
    return text_of(
        planned(tmp_path, grid(), profile, snapshot="abc"), tmp_path / "study/submissions/sub 1"
    )


def flags(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    return {name: "".join(shlex.split(value)) for name, value in found}


def test_nodes_expand_variables_of_the_scratch_folder(tmp_path):
    assert "FURNACE_SCRATCH" not in text(tmp_path)
    assert "\nexport FURNACE_SCRATCH='$TMPDIR/data of mine'\n" in text(
        tmp_path, scratch="$TMPDIR/data of mine"
    )


def test_the_golden_batch_script(tmp_path):
    found = text(tmp_path).replace(check_function(), "furnace_check() { RULE; }")
    code = (tmp_path / "study/code/abc").resolve()
    places = {
        tmp_path / "study/submissions/sub 1": "SUBMISSION",
        code / BATCH: "BATCH_PY",
        code: "CODE",
        sys.executable: "PYTHON",
        tmp_path: "RUNS",
    }
    for place, name in places.items():
        assert str(place) in found
        found = found.replace(shlex.quote(str(place)), name).replace(str(place), name)
    if os.environ.get("FURNACE_RENEW_GOLDEN") == "1":
        GOLDEN.write_text(found + "\n")
    difference = difflib.unified_diff(
        GOLDEN.read_text().splitlines(), found.splitlines(), "golden", "now", lineterm=""
    )
    assert not (lines := list(difference)), "\n".join(
        [
            *lines,
            "",
            f"If this is intended: FURNACE_RENEW_GOLDEN=1 pytest {Path(__file__).name}, then read "
            f"the diff of {GOLDEN.name}",
        ]
    )


def test_bash_accepts_the_script(tmp_path):
    done = subprocess.run(
        ["bash", "-n"], input=text(tmp_path), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_flags_of_profile_and_shape(tmp_path):
    found = flags(text(tmp_path))
    expected = {
        "array": "0-3%3",
        "partition": "gpu,long",
        "account": "proj 1",
        "constraint": "a100&ib",
        "nodes": "2",
        "ntasks-per-node": "4",
        "cpus-per-task": "16",
        "mem": "480GB",
        "gpus-per-node": "a100:4",
        "signal": "USR2@180",
        "time": "60",
        "wckey": "key",
        "requeue": "",
        "open-mode": "append",
        "job-name": "furnace-study-TOKEN",
    }
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "gres", "per_node"),
    [
        ({"gpu_flag": "gres"}, "gpu:a100:4", None),
        ({"gpu_flag": "gres", "gpu_type": None}, "gpu:4", None),
        ({"gpu_flag": "gpus_per_node", "gpu_type": None}, None, "4"),
        (
            {"gpu_flag": "gpus_per_node", "gpus_per_node": None, "processes_per_node": 2},
            None,
            "a100:2",
        ),
        ({"gpu_flag": None}, None, None),
        ({"gpu_flag": "gpus_per_task"}, None, None),
        ({"gpus_per_node": 0}, None, None),
    ],
)
def test_gpu_flags(tmp_path, changes, gres, per_node):
    found = flags(text(tmp_path, **changes))
    assert (found.get("gres"), found.get("gpus-per-node")) == (gres, per_node)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"gpu_flag": "gpus_per_task"}, ["--gpu-bind=none"]),
        (
            {"gpu_flag": "gpus_per_task", "srun_args": ["--gpu-bind=single:1"]},
            ["--gpu-bind=single:1"],
        ),
        ({"gpu_flag": "gpus_per_node"}, []),
    ],
)
def test_ranks_see_the_gpus_of_their_peers(tmp_path, changes, bound):
    lines = text(tmp_path, **changes).splitlines()
    [srun] = [line for line in lines if line.startswith("srun ")]
    assert [word for word in srun.split() if word.startswith("--gpu-bind")] == bound


def test_a_null_key_is_no_flag(tmp_path):
    names = ("wckey", "account", "qos", "constraint", "cpus_per_task", "mem_gb", "partition")
    script = text(tmp_path, **dict.fromkeys(names))
    for name in (*names, "mem"):
        assert f"--{name.replace('_', '-')}" not in script


def test_setup_lines_come_before_the_attempt(tmp_path):
    lines = text(tmp_path).splitlines()
    at = [lines.index(line) for line in FULL["setup"]]
    begin = next(number for number, line in enumerate(lines) if "begin-row" in line)
    srun = next(number for number, line in enumerate(lines) if line.startswith("srun "))
    assert at == sorted(at)
    assert at[-1] < begin < srun
    assert lines.index("export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0") < begin
    for argument in ("--cpus-per-task=16", "--kill-on-bad-exit=1", "--wait=60", "--mpi=none"):
        assert argument in lines[srun].split()


@pytest.mark.parametrize(
    ("indices", "written"),
    [
        ([0], "0"),
        ([0, 1, 2, 3, 7], "0-3,7"),
        ([7, 3, 5], "3,5,7"),
        ([1, 2, 4, 5, 9], "1-2,4-5,9"),
        ([], ""),
    ],
)
def test_ranges(indices, written):
    assert ranges(indices) == written


def test_a_retry_keeps_index_equal_to_row(tmp_path):
    asked = grid()
    plan = planned(tmp_path, asked, ClusterProfile.model_validate(FULL))
    finish(plan.runs[1].spec, plan.folder)
    again = planned(tmp_path, asked, plan.profile)
    assert flags(text_of(again, tmp_path))["array"] == "0,2-3%3"


def test_submitit_accepts_every_parameter(tmp_path):
    from submitit.slurm.slurm import _get_default_parameters

    profile = ClusterProfile.model_validate(FULL)
    plan = planned(tmp_path, grid(), profile)
    arrays = array_parameters(profile, array_of(plan), "name", tmp_path, tmp_path)
    follow_up = follow_up_parameters(
        profile, "name", ["1", "2"], tmp_path / "submissions/1", tmp_path
    )
    assert set(arrays) | set(follow_up) <= set(_get_default_parameters())
    assert follow_up["dependency"] == "afterany:1:2"
    assert not {"gpus_per_node", "gres", "cpus_per_task", "mem"} & set(follow_up)


def test_without_sbatch_a_cluster_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match="cluster 'big' needs Slurm, but there is no sbatch on PATH"
    ):
        require_slurm("big")


@pytest.mark.parametrize("character", ["\n", "\r", "\x7f", "%j"])
def test_a_control_character_in_the_path_is_refused(tmp_path, character):
    folder = tmp_path / f"a{character}rm x"
    with pytest.raises(ConfigError, match="contains a control character or one of % : "):
        text(folder)
