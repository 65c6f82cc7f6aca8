"""A real file system that is full during a training."""

import errno
import subprocess
from pathlib import Path

import pytest
from local_study import (
    STEPS,
    TWO,
    attempt,
    command,
    parameters,
    run_folder,
    wait_for_step,
    write_grid,
)
from slurm_cluster import wait_until
from small_disk import only, small_file_system

from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.checkpoint_files import steps_of
from furnace_hpc.runs.records.metrics import MetricsFile, read_metrics
from furnace_hpc.runs.records.verdict import RankVerdict


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_full_disk_during_training(small_root: Path, calm: Path, tmp_path: Path):
    """Training continues, and a checkpoint is saved as soon as there is space."""
    grid = write_grid(tmp_path, STEPS, "{first: {}}")
    with small_file_system(tmp_path / "runs", "32m") as disk:
        arguments = command(grid, small_root, *TWO)
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(arguments, cwd=tmp_path, stdout=said, stderr=said)
        wait_for_step(grid, "first", 12)
        folder = run_folder(grid, "first")
        log = folder / "logs/1-0.log"
        with only(disk, free_kib=32):  # enough for logs and metrics, not for a checkpoint
            wait_until(
                lambda: "checkpoint write failed, retry in" in log.read_text(),
                200,
                "a failed save",
            )
            newest = steps_of(RunFolder(folder))[-1]
        assert process.wait(timeout=400) == 0, (tmp_path / "said").read_text()
        assert (attempt(folder, 1)["reason"], (folder / "attempts/2.json").exists()) == (
            "done",
            False,
        )
        assert steps_of(RunFolder(folder))[-1] > newest, "it is saved as soon as there is space"
        assert not list(folder.glob("checkpoints/*.tmp-*"))
        trained = [
            record["step"]
            for record in read_metrics(RunFolder(folder))
            if record["kind"] == "train"
        ]
        assert trained == list(range(1, STEPS + 1))
        assert parameters(folder) == parameters(calm)


def test_metrics_are_written_after_a_full_disk(tmp_path: Path):
    with small_file_system(tmp_path / "small", "1m") as disk:
        metrics = MetricsFile(disk / "run/metrics/1.jsonl")
        verdict = RankVerdict(RunFolder(disk / "run"), 1, 0)
        with verdict, only(disk, free_kib=0):
            for step in range(1, 200):
                metrics.write({"step": step, "kind": "train", "filling": "x" * 100})
            verdict.stopping("SIGTERM")
        [verdict_now] = lifecycle.read_verdicts(str(disk / "run"), 1)
        # A short line still fits into the last block of its file.
        assert verdict_now["verdict"] == "stopping"
        assert len(read_metrics(RunFolder(disk / "run"))) < 199
        metrics.close()
        assert [record["step"] for record in read_metrics(RunFolder(disk / "run"))] == list(
            range(1, 200)
        )


def test_metrics_that_cannot_be_written(tmp_path: Path):
    with small_file_system(tmp_path / "small", "1m") as disk:
        metrics = MetricsFile(disk / "1.jsonl")
        with only(disk, free_kib=0):
            metrics.write({"step": 1, "kind": "train"})
            with pytest.raises(OSError, match=f"Errno {errno.ENOSPC}"):
                metrics.close()
