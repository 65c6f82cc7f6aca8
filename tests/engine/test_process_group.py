"""The process group: its device, its time limits, and the comparison of placements before it."""

import os
import threading
from datetime import timedelta
from types import SimpleNamespace

import deepspeed
import pytest
import rank_work
import torch
import torch.distributed as dist
from deepspeed.runtime import engine as deepspeed_engine
from forked_ranks import run_on_ranks

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.ranks import distributed
from furnace_hpc.engine.ranks.devices import RankPlacement
from furnace_hpc.engine.ranks.distributed import RankInfo, check_placements
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.host.lifecycle import START_S
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.verdict import RankVerdict

LIMIT = timedelta(seconds=60)


@pytest.mark.parametrize(
    ("device", "local_rank", "chosen"),
    [("cuda:0", 3, 0), ("cuda:3", 3, 3), ("cuda:0", 0, 0), ("cpu", 3, 3)],
)
def test_deepspeed_uses_the_device_of_the_rank(monkeypatch, device, local_rank, chosen):
    """A rank that sees one GPU has cuda:0, also with local rank 3 (`--gpus-per-task`)."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CROSS_SIZE", "CROSS_RANK", "LOCAL_SIZE"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "1")
    distributed._set_environment(RankInfo(3, local_rank, 4, None), torch.device(device), LIMIT)
    devices: list[int] = []
    accelerator = SimpleNamespace(set_device=devices.append, device_name=lambda index: "cpu")
    monkeypatch.setattr(deepspeed_engine, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(deepspeed_engine.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(deepspeed_engine.dist, "get_rank", lambda: 3)
    engine = SimpleNamespace(local_rank=int(os.environ["LOCAL_RANK"]))
    deepspeed.DeepSpeedEngine._set_distributed_vars(engine, None)
    assert devices == [chosen]


def placements_of(gpus: list[str]) -> list[str]:
    """Compare the placements of some ranks, each in a thread. Return the error of each."""
    store, errors = dist.HashStore(), [""] * len(gpus)

    def rank(number: int) -> None:
        own = RankPlacement(number, "node1", gpus[number], frozenset({number}), 1)
        try:
            check_placements(store, own, RankInfo(number, number, len(gpus), None))
        except ConfigError as error:
            errors[number] = str(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(gpus))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return errors


def test_placements_are_compared_in_the_store():
    """Every rank gets the error. No collective is needed."""
    assert placements_of(["GPU-a", "GPU-b", "GPU-c"]) == [""] * 3
    [error] = set(placements_of(["GPU-a", "GPU-b", "GPU-b"]))
    assert error.startswith("ranks 1 and 2 on node1 have the same GPU (GPU-b). Request")


def test_placement_survives_the_store():
    own = RankPlacement(5, "node1", "GPU-a", frozenset({0, 3}), 2)
    assert RankPlacement.from_json(own.to_json().encode()) == own


def test_placements_come_before_nccl(monkeypatch):
    """NCCL refuses to start if two ranks share a GPU, without naming ranks or a fix."""
    calls: list[str] = []

    def check(*arguments: object) -> None:
        calls.append("placements")
        raise ConfigError("the same GPU")

    monkeypatch.setattr(distributed, "choose_device", lambda rank: torch.device("cpu"))
    monkeypatch.setattr(distributed, "_set_environment", lambda *arguments: None)
    monkeypatch.setattr(distributed, "_open_store", lambda *arguments: dist.HashStore())
    monkeypatch.setattr(distributed, "check_placements", check)
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: calls.append("group"))
    with pytest.raises(ConfigError, match="the same GPU"):
        distributed.init_process_group(RankInfo(0, 0, 1, None))
    assert calls == ["placements"]


def test_long_limit_until_the_first_step(tmp_path):
    """A heartbeat in the start, such as after staging, does not shorten the rest of it."""
    watchdog = Watchdog(600, RankVerdict(RunFolder(tmp_path), 1, 0))
    assert watchdog._last[1] == START_S
    watchdog.heartbeat("copying data to this node")
    assert watchdog._last[1] == START_S
    watchdog.end_start()
    watchdog.heartbeat("step 2")
    assert watchdog._last[1] == 600


def test_time_limits_of_all_groups(tmp_path):
    """DeepSpeed's own group too. Torch would give it 600 s under NCCL."""
    [start, training], other = run_on_ranks(rank_work.time_limits, 2, tmp_path, 77.0)
    assert len(start) >= 2, "the default group and DeepSpeed's"
    margin_s = distributed.GROUP_MARGIN_S
    assert set(start) == {START_S + margin_s}
    assert set(training) == {77 + margin_s}
    assert other == [start, training]
