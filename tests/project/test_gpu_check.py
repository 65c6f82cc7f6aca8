"""benchmarks/gpu_check.py on a CPU: no part fails, and parts that need a GPU say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.slow
def test_small_check_on_a_cpu(small_data: Path, tmp_path: Path):
    code, rows, output = run(tmp_path, small_data)
    assert code == 0, output
    assert {row["level"] for row in rows} == {"ok", "info", "skip"}
    assert {row["name"] for row in rows if row["level"] == "skip"} == NEED_A_GPU
    assert all(row["found"] == "needs a GPU" for row in rows if row["level"] == "skip")
    assert len([row for row in rows if row["level"] == "ok"]) >= 13


@pytest.mark.slow
def test_failed_part_counts(tmp_path: Path):
    """The exit code is the number of FAILs, and the log of the part is kept."""
    code, rows, output = run(tmp_path, tmp_path / "no data", "--only", "step_time")
    assert (code, [row["level"] for row in rows]) == (1, ["FAIL"]), output
    assert "No such file" in (tmp_path / "step_time-zero1.log").read_text()
