"""`submit --canary` on this machine: the canary's work is kept, and the rest follows it."""

import json
from pathlib import Path

import pytest
from local_study import TWO, attempt, parameters, run_folder, submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
GRID = """
name: local
base:
  model: {width: 16, num_heads: 2, feedforward: 32, text_layers: 1}
  deepspeed: zero1_fp32
  steps: 48
  global_batch_size: 8
  evaluation: {every: 20}
  checkpoint_every: 15
seeds: [0, 1]
reference: first
metric: test/digit/accuracy
variants:
  first: {loss.alpha: 0.1}
  second: {loss.alpha: 0.2}
"""
FAILING = GRID.replace("  steps: 48", "  optimizer: {lr: 1e30}\n  steps: 48")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.mark.parametrize("options", [(), TWO], ids=["one rank", "two ranks"])
def test_a_canary_and_the_rest(grid, small_root, options):
    done = submit(grid, small_root, "--canary", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs (1 start, 3 wait) on local" in done.stdout
    assert "interrupted after step 20, stopped by --canary" in done.stderr
    assert "4 runs (1 resume, 3 start) on local" in done.stdout
    assert "node-hours" in done.stdout
    folder = run_folder(grid, "first")
    first, second = attempt(folder, 1), attempt(folder, 2)
    assert (first["reason"], first["step"], first["stop_after_steps"]) == ("canary", 20, 20)
    assert (second["reason"], second["stop_after_steps"]) == ("done", None)
    timed = json.loads((folder / "canary.json").read_text())
    assert (timed["val_samples"], timed["test_samples"]) == (60, 90)
    assert timed["with_subsets_s"] > 0
    assert timed["evaluation_s"] > 0
    saved = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    assert 20 in [line["step"] for line in saved if line["attempt"] == 1]
    plain = submit(
        grid, small_root, "--variant", "first", "--seed", "0", "--runs-root", "plain", *options
    )
    assert plain.returncode in (0, 1), plain.stdout + plain.stderr
    other = run_folder(grid, "first", "plain")
    assert other.name == folder.name
    assert attempt(other, 1)["reason"] == "done"
    assert parameters(folder) == parameters(other)
    metrics = [json.loads((run / "result.json").read_text())["metrics"] for run in (folder, other)]
    assert metrics[0] == metrics[1]


def test_a_failed_canary_holds_the_rest_back(grid, small_root):
    """Its first step makes the parameters infinite."""
    grid.write_text(FAILING)
    done = submit(grid, small_root, "--canary")
    assert done.returncode == 1, done.stdout + done.stderr
    folder = run_folder(grid, "first")
    assert attempt(folder, 1)["reason"] == "nonfinite"
    line = f"the canary {folder.name} failed: "
    assert line in done.stdout
    assert "3 runs of its kind are held back" in done.stdout
    assert not list(folder.parent.glob("second-s*"))
    again = submit(grid, small_root, "--canary", "--dry-run")
    assert again.returncode == 0, again.stderr
    assert f"held back, because the canary {folder.name} failed: " in again.stdout
