"""benchmarks/gpu_check.py on a CPU: no part fails, and parts that need a GPU say so."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
NEED_A_GPU = {
    "verdicts of CUDA errors",
    "attention kernels",
    "cost of filling new memory",
}


def run(out: Path, data: Path, *options: str) -> tuple[int, list[dict], str]:
    """The exit code, the rows, and the output of a small check."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--small", "--data", str(data), "--out", str(out), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        check=False,
    )
    return (
        done.returncode,
        json.loads((out / "gpu_check.json").read_text()),
        done.stdout + done.stderr,
    )


# Each part, at the stage that has the most code. tests/engine has the other stages on a CPU.
PARTS = {
    "machine": ["machine", "bound_rank", "hardware_errors", "attention", "fill"],
    "waits": ["waits zero1", "waits zero2"],
    "steps": ["host_copy", "stage zero3_offload", "same_bits zero3"],
    "runs": ["step_time", "resumes zero2", "meters", "auto", "out_of_memory", "collectives"],
}


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS)
def test_small_check_on_a_cpu(parts: str, small_data: Path, tmp_path: Path):
    code, rows, output = run(tmp_path, small_data, "--only", *PARTS[parts])
    assert code == 0, output
    assert {row["level"] for row in rows} <= {"ok", "info", "skip"}
    skipped = {row["name"] for row in rows if row["level"] == "skip"}
    assert skipped == (NEED_A_GPU if parts == "machine" else set())
    assert all(row["found"] == "needs a GPU" for row in rows if row["level"] == "skip")
    passed = [row for row in rows if row["level"] == "ok"]
    assert len(passed) == len(PARTS[parts]) - len(skipped), output


def test_every_part_is_checked():
    """Some only at one stage."""
    source = SCRIPT.read_text()
    names = re.findall(r'^    "(\w+)": gpu_check_', source, re.MULTILINE)
    assert set(names) == {part.split()[0] for parts in PARTS.values() for part in parts}


@pytest.fixture
def gpu_check(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu_check")


def options_of(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(small=True, data=str(folder), runs=str(folder), only=None)


SLEEPS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[sys.argv.index("--out") + 1] + "/pids", "w").write(str(child.pid))
print('{"level": "ok", "name": "early", "found": ""}', flush=True)
time.sleep(60)
"""


def test_a_part_without_answer_fails(gpu_check, tmp_path: Path, monkeypatch):
    """It is killed with its own children, and what it has printed does not count."""
    script = tmp_path / "part.py"
    script.write_text(SLEEPS)
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    since_s = time.monotonic()
    [row] = gpu_check._run_part(options_of(tmp_path), tmp_path, "waits", "", 3)
    assert time.monotonic() - since_s < 30
    assert (row["level"], row["found"]) == ("FAIL", "exit 124: no answer within 3 s")
    assert (tmp_path / "waits-.log").read_text() == "no answer within 3 s"
    child = int((tmp_path / "pids").read_text())
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(child).wait(10) is None


def test_no_part_starts_without_time(gpu_check, tmp_path: Path, monkeypatch):
    """Each part gets the time that is left, at most its own limit."""
    given = []

    def run_part(options, out, part, argument, left_s):
        given.append(left_s)
        return [gpu_check._row("ok", part, "")]

    monkeypatch.setattr(gpu_check, "_run_part", run_part)
    deadline_s = time.monotonic() + gpu_check.LEAST_S - 1
    rows = gpu_check._run_parts(options_of(tmp_path), tmp_path, deadline_s)
    assert given == []
    assert {(row["level"], row["found"]) for row in rows} == {("skip", "no time is left")}
    assert len(rows) == len(gpu_check.PARTS)
    gpu_check._run_parts(options_of(tmp_path), tmp_path, time.monotonic() + 100)
    assert max(given) <= 100
    gpu_check._run_parts(options_of(tmp_path), tmp_path, time.monotonic() + 10_000)
    assert max(given) == gpu_check.PART_S[True]


@pytest.mark.slow
def test_failed_part_counts(tmp_path: Path):
    """The exit code is the number of FAILs, and the log of the part is kept."""
    code, rows, output = run(tmp_path, tmp_path / "no data", "--only", "step_time")
    assert (code, [row["level"] for row in rows]) == (1, ["FAIL"]), output
    assert "No such file" in (tmp_path / "step_time-zero1.log").read_text()
