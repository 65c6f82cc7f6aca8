"""A command that is killed with its parent, and whose output is passed on."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from furnace_hpc.launch.slurm_array import _Executor
from furnace_hpc.slurm.die_with_parent import run


def test_output_and_exit_code_are_passed_on():
    script = "printf 'a\\377\\nSubmitted batch job 7\\n'; printf 'no \\376' >&2; exit 3"
    done = run(["sh", "-c", script], 20)
    assert done == (3, "a\ufffd\nSubmitted batch job 7\n", "no \ufffd")
    assert _Executor._get_job_id_from_submission_command(done.output) == "7"
    assert run(["sh", "-c", "kill -9 $$"], 20).code == 137


def test_a_slow_command_is_killed():
    began_s = time.monotonic()
    assert run(["sh", "-c", "echo begun; exec sleep 60"], 1) == (1, "", "")
    assert time.monotonic() - began_s < 30


def test_a_missing_command_is_named():
    assert run(["/nowhere/sbatch"], 9) == (1, "", "/nowhere/sbatch: No such file or directory")


def test_the_command_is_killed_with_its_parent(tmp_path: Path):
    sleep = ["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 61"]
    script = f"from furnace_hpc.slurm.die_with_parent import run; run({sleep!r}, 60)"
    with subprocess.Popen([sys.executable, "-c", script]) as submitter:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sleeping = psutil.Process(int((tmp_path / "pid").read_text()))
        submitter.kill()
    sleeping.wait(10)
