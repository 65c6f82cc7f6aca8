"""The last collectives of a hung rank, from torch's own recorder over gloo."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from furnace_hpc.engine.ranks import flight_recorder
from furnace_hpc.engine.ranks.flight_recorder import set_variables
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.folder import RunFolder

RANK = """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.verdict import RankVerdict

run = RunFolder(Path(sys.argv[1]))
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{run.path}/store", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
with RankVerdict(run, 1, rank) as verdict:
    with Watchdog(2.0, verdict, 30, Path(f"{run.collectives(1)}{rank}")) as watchdog:
        watchdog.end_start()
        watchdog.heartbeat("step 1")
        dist.all_reduce(torch.ones(7))
        if rank == 1:
            time.sleep(40)
        dist.all_reduce(torch.ones(11, 3))
"""


def test_a_hung_rank_leaves_its_last_collectives(tmp_path):
    """Rank 0 waits for rank 1 in an all-reduce of 11 x 3 values, and the file says so."""
    lifecycle.begin(str(tmp_path), {"world_size": 2})
    environment = os.environ | {"TORCH_FR_BUFFER_SIZE": "50"}
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert ranks[0].wait(90) == lifecycle.EXIT_HANG
        path = Path(f"{RunFolder(tmp_path).collectives(1)}0")
        entries = pickle.loads(path.read_bytes())["entries"]
        assert entries[-1]["input_sizes"] == [[11, 3]]
        assert entries[-1]["profiling_name"] == "gloo:all_reduce"
        assert ranks[1].wait(90) == lifecycle.EXIT_HANG
        files = sorted(file.name for file in RunFolder(tmp_path).logs.iterdir())
        assert files == ["1-collectives-0", "1-collectives-1"]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_a_dump_that_hangs_or_fails(tmp_path, monkeypatch, capsys):
    """The process is killed in time, and a failed dump leaves no file."""
    monkeypatch.setattr(flight_recorder, "DUMP_S", 0.1)
    monkeypatch.setattr(flight_recorder, "_recorder", lambda: lambda **options: time.sleep(2))
    since_s = time.monotonic()
    assert not flight_recorder.dump(tmp_path / "a")
    assert time.monotonic() - since_s < 1.5

    def fails(**options) -> bytes:
        raise RuntimeError("no recorder")

    monkeypatch.setattr(flight_recorder, "DUMP_S", 5)
    monkeypatch.setattr(flight_recorder, "_recorder", lambda: fails)
    assert not flight_recorder.dump(tmp_path / "b")
    assert "the last collectives were not written: no recorder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (
            {},
            {
                "NCCL_DEBUG": "WARN",
                "TORCH_FR_BUFFER_SIZE": "2000",
                "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
                "TORCH_FR_DUMP_TEMP_FILE": "/run/logs/1-collectives-",
                "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/run/logs/1-collectives-",
            },
        ),
        (
            {
                "NCCL_DEBUG": "INFO",
                "TORCH_NCCL_TRACE_BUFFER_SIZE": "0",
                "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
                "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/mine-",
            },
            {},
        ),
    ],
)
def test_variables_of_the_user_stay(own, expected):
    environment = dict(own)
    set_variables(environment, Path("/run/logs/1-collectives-"))
    assert environment == own | expected


def test_installed_torch_reads_these_names():
    """In the headers of the installed torch, and the default of the buffer too."""
    import torch

    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d"
    recorder = (header / "FlightRecorder.hpp").read_text()
    assert '{"TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"}, 2000)' in recorder
    assert '"TORCH_NCCL_DUMP_ON_TIMEOUT"' in (header / "ProcessGroupNCCL.hpp").read_text()
    library = (Path(torch.__file__).parent / "lib/libtorch_cpu.so").read_bytes()
    assert all(name.encode() in library for name in flight_recorder.TEMP_FILE)
