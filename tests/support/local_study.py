"""A grid on this machine's own queue: submitted as a user does, and what its runs leave."""

import json
import subprocess
import sys
import time
from pathlib import Path

import forked_commands
import pytest
from made_once import made_once

GRID = """
name: local
base:
  model: {{width: 16, num_heads: 2, feedforward: 32, text_layers: 1}}
  deepspeed: zero1
  steps: {steps}
  global_batch_size: 8
  evaluation: {{every: 20}}
  checkpoint_every: 10
  log_every: 1
seeds: [0]
reference: first
metric: test/digit/accuracy
variants: {variants}
"""


STEPS = 80  # some seconds, so that signals find the ranks at work
TWO = ("--set", "resources.processes_per_node=2", "--set", "deepspeed=zero2")


def write_grid(folder: Path, steps: int, variants: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(GRID.format(steps=steps, variants=variants))
    return path


def command(grid: Path, data: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "furnace_hpc.submit",
        "--grid",
        str(grid),
        "--cluster",
        "local",
        "--data-root",
        str(data),
        *options,
    ]


def submit(grid: Path, data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return forked_commands.run(command(grid, data, *options), cwd=grid.parent, timeout=500)


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory, small_root: Path) -> Path:
    """A run of STEPS steps and the options TWO that nothing disturbed."""

    def make(place: Path) -> None:
        done = submit(write_grid(place, STEPS, "{first: {}}"), small_root, *TWO)
        assert done.returncode == 0, done.stdout + done.stderr

    return run_folder(made_once(tmp_path_factory, "calm", make) / "grid.yaml", "first")


def run_folder(grid: Path, variant: str, root: str = "runs") -> Path:
    (found,) = (grid.parent / root / "local").glob(f"{variant}-s0-*")
    return found


def attempt(folder: Path, number: int) -> dict:
    return json.loads((folder / "attempts" / f"{number}.json").read_text())


def parameters(folder: Path) -> str:
    return json.loads((folder / "result.json").read_text())["parameters_sha256"]


def wait_for_step(grid: Path, variant: str, step: int) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        lines = [
            line
            for path in (grid.parent / "runs").glob(f"local/{variant}-s0-*/metrics/*.jsonl")
            for line in path.read_text().splitlines()
        ]
        if any(json.loads(line)["step"] >= step for line in lines[:-1]):
            return
        time.sleep(0.05)
    raise AssertionError(f"{variant} did not come to step {step}")
