"""The program of a batch script whose runs share a GPU, with stand-ins."""

import os
import signal
from pathlib import Path

import pytest
from stand_in_mps import daemons, write_tools
from test_shared_node import Element

from furnace_hpc.host import lifecycle
from furnace_hpc.host.shared_node import runner as runner_file


def test_runs_of_a_job_share_its_gpu(monkeypatch, tmp_path, capfd):
    """The program of the job starts MPS, names each rank its GPU, and ends MPS."""
    nvidia = write_tools(tmp_path / "nvidia")
    one = Element(tmp_path, monkeypatch, ["ok", "ok2"], gpus_per_node=1, runs_per_gpu=2)
    monkeypatch.setenv("PATH", f"{nvidia}:{os.environ['PATH']}")
    job = {"SLURM_ARRAY_JOB_ID": "91", "SLURM_ARRAY_TASK_ID": "0", "SLURM_GPUS_ON_NODE": "1"}
    job |= {"CUDA_VISIBLE_DEVICES": "3", "STAND_IN_MPS": str(nvidia), "SLURM_JOB_END_TIME": ""}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "")  # the program changes its own environment
    monkeypatch.setenv("CUDA_MPS_LOG_DIRECTORY", "")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with pytest.raises(SystemExit) as ended:
            runner_file.main([str(one.submission.path), "0-1", "2", "", "--srun", "--ranks", "x"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 0
    assert {words[2] for words in one.sruns} == {"GPU-00000003"}
    assert all("--overlap" in words and "--gres=gpu:1" in words for words in one.sruns)
    [(gpus, pipe)] = daemons(nvidia)
    assert gpus == "GPU-00000003"
    assert not Path(pipe).exists()
    record = lifecycle.read_attempt(one.submission.rows[0].run_dir, 1)
    assert (record["gpus"], record["runs_per_gpu"], record["gpu_sharing"]) == (0.5, 2, "MPS")
    assert "up to 2 runs use one GPU at the same time, with MPS" in capfd.readouterr().out
