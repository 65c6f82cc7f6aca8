"""benchmarks/gpu_check.py on a CPU: no part fails, and parts that need a GPU say so."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
NEED_A_GPU = {
    "verdicts of CUDA errors",
    "attention kernels",
    "host waits in a step",
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
    "machine": ["machine", "bound_rank", "hardware_errors", "attention", "waits", "fill"],
    "steps": ["host_copy", "stage zero3_offload", "same_bits zero3"],
    "runs": ["step_time", "resumes zero2"],
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


@pytest.mark.slow
def test_failed_part_counts(tmp_path: Path):
    """The exit code is the number of FAILs, and the log of the part is kept."""
    code, rows, output = run(tmp_path, tmp_path / "no data", "--only", "step_time")
    assert (code, [row["level"] for row in rows]) == (1, ["FAIL"]), output
    assert "No such file" in (tmp_path / "step_time-zero1.log").read_text()
