"""The local queue with real ranks and real signals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from local_study import (
    STEPS,
    TWO,
    attempt,
    command,
    parameters,
    run_folder,
    submit,
    wait_for_step,
    write_grid,
)
from slurm_cluster import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def losses(folder: Path) -> dict[int, float]:
    """Return step -> loss. For a step the highest attempt counts."""
    found = {}
    for path in sorted((folder / "metrics").glob("*.jsonl"), key=lambda path: int(path.stem)):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found |= {
            record["step"]: record["train/loss"] for record in records if record["kind"] == "train"
        }
    return found


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def check_result(folder: Path) -> None:
    """Check that the metrics are those of the stored predictions, at the selected step.

    That is the first evaluated step with the best validation metric.
    """
    result = json.loads((folder / "result.json").read_text())
    for split in ("val", "test"):
        with np.load(folder / f"predictions/{split}.npz") as kept:
            hits = kept["logits.digit"].argmax(1) == kept["label.digit"]
            assert len(set(kept["sample_id"])) == len(hits) == {"val": 60, "test": 90}[split]
        assert result["metrics"][f"{split}/digit/accuracy"] == pytest.approx(hits.mean())
    evaluated = {}
    for path in (folder / "metrics").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        evaluated |= {r["step"]: r["val/digit/accuracy"] for r in records if r["kind"] == "val"}
    assert sorted(evaluated) == list(range(20, result["steps"] + 1, 20))
    best = max(evaluated.values())
    assert result["selected_step"] == min(
        step for step, value in evaluated.items() if value == best
    )
    assert result["metrics"]["val/digit/accuracy"] == best
    assert (folder / f"checkpoints/step-{result['selected_step']}/manifest.json").exists()


def test_forked_and_fresh_runs_have_the_same_bits(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two runs of one server too, one of them portable, and a run of two ranks."""
    rows = "{first: {}, portable: {portable: true, deepspeed: zero1_fp32}}"
    grid = write_grid(tmp_path, 12, rows)
    two = ("--variant", "first", "--set", "resources.processes_per_node=2")
    for fresh in ("0", "1"):
        monkeypatch.setenv("FURNACE_FRESH_RANKS", fresh)
        assert submit(grid, small_root, "--runs-root", f"one-{fresh}").returncode == 0
        assert submit(grid, small_root, *two, "--runs-root", f"two-{fresh}").returncode == 0
    hashes = set()
    for row, ranks in (("first", "one"), ("portable", "one"), ("first", "two")):
        fork, fresh = (run_folder(grid, row, f"{ranks}-{way}") for way in ("0", "1"))
        assert parameters(fork) == parameters(fresh)
        assert losses(fork) == losses(fresh)
        hashes.add(parameters(fork))
    assert len(hashes) == 3
    assert list((tmp_path / "one-0/local/submissions/1").glob("rank-server-*.log"))
    assert not list((tmp_path / "one-1/local/submissions/1").glob("rank-server-*.log"))


def test_one_of_two_fails_and_only_it_is_retried(small_root: Path, tmp_path: Path):
    grid = write_grid(tmp_path, 12, "{first: {}, broken: {optimizer.lr: 1.0e+30}}")
    first = submit(grid, small_root)
    assert first.returncode == 1, first.stderr
    assert "1 of 2" in first.stdout or "broken" in first.stderr
    # the last step is the best, and can be exported
    assert (run_folder(grid, "first") / "checkpoints/step-12/manifest.json").exists()
    broken = run_folder(grid, "broken")
    assert attempt(broken, 1)["reason"] == "nonfinite"
    assert re.match(
        r"step \d+: FloatingPointError: the (loss|gradient) is ", attempt(broken, 1)["error"]
    )
    assert not (broken / "result.json").exists()

    left_alone = submit(grid, small_root)
    assert left_alone.returncode == 1
    assert "--retry failed" in left_alone.stdout
    assert not (broken / "attempts/2.json").exists()

    retried = submit(grid, small_root, "--retry", "failed")
    assert retried.returncode == 1
    assert attempt(broken, 2)["reason"] == "nonfinite"
    assert not (run_folder(grid, "first") / "attempts/2.json").exists()


def test_ctrl_c_and_resume_are_bit_identical(small_root: Path, calm: Path, tmp_path: Path):
    """Two ranks are stopped by Ctrl-C, then by a closed terminal."""
    grid = write_grid(tmp_path, STEPS, "{first: {}}")
    process = subprocess.Popen(
        command(grid, small_root, *TWO),
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(grid, "first", 13)
    children = descendants(process)
    assert len(children) >= 4  # the rank server, a controller and two ranks
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert psutil.wait_procs(children, timeout=60)[1] == []
    folder = run_folder(grid, "first")
    assert attempt(folder, 1)["reason"] == "stopped"
    stopped_at = attempt(folder, 1)["step"]
    assert 13 <= stopped_at < STEPS
    assert (folder / f"checkpoints/step-{stopped_at}").is_dir()
    assert not (tmp_path / "runs/local/submit.lock").exists()

    hung_up = subprocess.Popen(
        command(grid, small_root, *TWO),
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        # under nohup it is ignored, by children too
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    wait_for_step(grid, "first", stopped_at + 5)
    children = descendants(hung_up)
    os.killpg(hung_up.pid, signal.SIGHUP)  # the terminal is closed
    assert hung_up.wait(timeout=200) == 130
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert attempt(folder, 2)["reason"] == "stopped"

    continued = submit(grid, small_root, *TWO)
    assert continued.returncode == 0, continued.stderr
    assert f"resumed after step {stopped_at}" in (folder / "logs/2-0.log").read_text()
    second = [json.loads(line) for line in (folder / "metrics/2.jsonl").read_text().splitlines()]
    assert min(record["step"] for record in second if record["kind"] == "train") == stopped_at + 1
    assert losses(folder) == losses(calm)
    assert parameters(folder) == parameters(calm)
    check_result(folder)


def test_a_kill_resumes_from_the_periodic_checkpoint(small_root: Path, calm: Path, tmp_path: Path):
    grid = write_grid(tmp_path, STEPS, "{first: {}}")
    process = subprocess.Popen(
        command(grid, small_root, *TWO),
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    wait_for_step(grid, "first", 14)
    saved = run_folder(grid, "first") / "checkpoints.jsonl"
    wait_until(lambda: saved.exists() and saved.read_text(), 60, "the checkpoint of step 10")
    victims = [*descendants(process), psutil.Process(process.pid)]
    for victim in victims:
        victim.kill()
    process.wait()
    psutil.wait_procs(victims, timeout=60)
    folder = run_folder(grid, "first")
    assert attempt(folder, 1)["end_unix_s"] is None
    assert (tmp_path / "runs/local/submit.lock").exists()

    continued = submit(grid, small_root, *TWO)
    assert continued.returncode == 0, continued.stderr
    assert "its launcher died" in continued.stdout
    first_step = min(
        json.loads(line)["step"] for line in (folder / "metrics/2.jsonl").read_text().splitlines()
    )
    assert first_step % 10 == 1
    assert first_step >= 11
    assert parameters(folder) == parameters(calm)
    nothing = submit(grid, small_root, *TWO)
    assert nothing.returncode == 0
    assert "nothing to do" in nothing.stdout


def test_torchrun_trains_a_run_folder_to_the_same_bits(
    small_root: Path, calm: Path, tmp_path: Path
):
    other = tmp_path / "other" / calm.name
    other.mkdir(parents=True)
    (other / "spec.json").write_bytes((calm / "spec.json").read_bytes())
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "furnace_hpc.train",
    ]
    done = subprocess.run(
        [*torchrun, str(other), "--data-root", str(small_root)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert attempt(other, 1)["reason"] == "done"
    assert parameters(other) == parameters(calm)
