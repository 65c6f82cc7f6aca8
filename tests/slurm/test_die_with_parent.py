"""A command that is killed with its parent, and whose output is passed on."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from furnace_hpc.launch.slurm_array import _Executor
from furnace_hpc.slurm import die_with_parent

COMMAND = [sys.executable, "-S", die_with_parent.__file__]


def run(seconds: str, script: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, seconds, "sh", "-c", script], capture_output=True, timeout=30, check=False
    )


def test_output_and_exit_code_are_passed_on():
    done = run("20", "printf 'a\\377\\nSubmitted batch job 7\\n'; printf 'no \\376' >&2; exit 3")
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (
        3,
        "a\ufffd\nSubmitted batch job 7\n",
        "no \ufffd",
    )
    assert _Executor._get_job_id_from_submission_command(done.stdout) == "7"


def test_a_slow_command_is_killed():
    began_s = time.monotonic()
    done = run("1", "echo begun; exec sleep 60")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert time.monotonic() - began_s < 30


def test_a_missing_command_is_named():
    done = subprocess.run(
        [*COMMAND, "9", "/nowhere/sbatch"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (1, "/nowhere/sbatch: No such file or directory\n")


def test_the_command_is_killed_with_its_parent(tmp_path: Path):
    sleep = ["60", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 61"]
    script = f"import subprocess; subprocess.run({[*COMMAND, *sleep]!r})"
    with subprocess.Popen([sys.executable, "-c", script]) as submitter:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sleeping = psutil.Process(int((tmp_path / "pid").read_text()))
        submitter.kill()
    sleeping.wait(10)
