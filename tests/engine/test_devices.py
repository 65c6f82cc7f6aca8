"""The device of each rank, and messages about ranks that share GPUs or too few cores."""

import os
import socket

import pytest
import torch

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.ranks.devices import RankPlacement, choose_device, find_placement_problems

CPU = torch.device("cpu")


def placement(
    rank: int, gpu: str = "", cores: str = "0123", threads: int = 1, host: str = "node1"
) -> RankPlacement:
    return RankPlacement(rank, host, gpu, frozenset(map(int, cores)), threads)


FINE = {
    "no ranks": [],
    "one rank on one core": [placement(0, cores="0", threads=8)],
    "a GPU and cores each": [placement(0, "GPU-a", "01"), placement(1, "GPU-b", "23")],
    "all on the CPU, cores for all": [placement(rank) for rank in range(4)],
    "two threads each, cores for both": [placement(0, threads=2), placement(1, threads=2)],
    "one core each": [placement(0, cores="0"), placement(1, cores="1")],
    "the same numbers on two hosts": [
        placement(0, "GPU-a", "0"),
        placement(1, "GPU-a", "0", host="node2"),
    ],
}


@pytest.mark.parametrize("case", FINE)
def test_no_placement_problem(case):
    assert find_placement_problems(FINE[case]) == ("", "")


def test_two_ranks_on_one_gpu():
    placements = [
        placement(0, "GPU-a"),
        placement(1, "GPU-b"),
        placement(2, "GPU-b"),
        placement(3, "GPU-b"),
    ]
    wrong, crowded = find_placement_problems(placements)
    assert wrong.startswith(
        "ranks 1 and 2 on node1 have the same GPU (GPU-b). Request as many GPUs per node as "
    )
    assert "CUDA_VISIBLE_DEVICES" in wrong
    assert crowded == ""


def test_shared_gpu_on_any_host_in_any_order():
    placements = [
        placement(2, "GPU-a", host="node2"),
        placement(0, "GPU-a"),
        placement(3, "GPU-a", host="node2"),
    ]
    wrong, _ = find_placement_problems(placements)
    assert wrong.startswith("ranks 2 and 3 on node2 have the same GPU (GPU-a)")


@pytest.mark.parametrize(("cores", "threads", "total"), [("0", 1, 3), ("01", 1, 3), ("0123", 2, 6)])
def test_too_few_shared_cores(cores, threads, total):
    wrong, crowded = find_placement_problems(
        [placement(rank, f"GPU-{rank}", cores, threads) for rank in range(3)]
    )
    assert wrong == ""
    numbers = [int(core) for core in cores]
    assert crowded.startswith(
        f"all 3 ranks on node1 share the cores {numbers}, but have {total} threads. "
    )
    assert crowded.endswith("Set cpus_per_task in the profile.")


def test_both_placement_problems_at_once():
    crowd = [placement(2, "GPU-a", "0", host="node2"), placement(3, "GPU-a", "0", host="node2")]
    wrong, crowded = find_placement_problems(
        [placement(0, "GPU-a", "0"), placement(1, "GPU-b", "1"), *crowd]
    )
    assert wrong.startswith("ranks 2 and 3 on node2 have the same GPU")
    assert crowded.startswith("all 2 ranks on node2 share the cores [0], but have 2 threads")


def test_placement_of_this_process(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert RankPlacement.of_this_process(5, CPU) == RankPlacement(
        5, socket.gethostname(), "", frozenset(os.sched_getaffinity(0)), 3
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert RankPlacement.of_this_process(0, CPU).num_threads == torch.get_num_threads()


def no_cuda(monkeypatch, **variables: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("visible", ["0", "0,1,2,3", "GPU-8f3c", "MIG-1"])
def test_gpus_that_torch_cannot_use(monkeypatch, visible):
    no_cuda(monkeypatch, CUDA_VISIBLE_DEVICES=visible)
    with pytest.raises(ConfigError) as refused:
        choose_device(0)
    message = str(refused.value)
    assert message.startswith(
        f"this rank was given GPUs {visible}, and torch {torch.__version__} can use none. "
    )
    assert f"nvidia-smi on {socket.gethostname()}" in message
    assert message.endswith("Set DS_ACCELERATOR=cpu to train on the CPU.")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert choose_device(0) == CPU


def test_cpu_without_gpus(monkeypatch):
    no_cuda(monkeypatch)
    assert choose_device(3) == CPU
    for nothing in ("", "-1", "NoDevFiles"):
        no_cuda(monkeypatch, CUDA_VISIBLE_DEVICES=nothing)
        assert choose_device(3) == CPU
    no_cuda(monkeypatch, CUDA_VISIBLE_DEVICES="0", DS_ACCELERATOR="cuda")
    with pytest.raises(ConfigError, match="this rank was given GPUs 0, "):
        choose_device(0)


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes torch report a number of GPUs. It returns the list of devices set."""
    chosen = []

    def show(count: int):
        monkeypatch.delenv("DS_ACCELERATOR", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    return show


def test_gpu_of_the_local_rank(gpus):
    chosen = gpus(4)
    expected = [torch.device("cuda", rank) for rank in range(4)]
    assert [choose_device(rank) for rank in range(4)] == expected
    assert chosen == expected


def test_a_rank_that_shares_its_gpu_limits_its_memory(gpus, monkeypatch):
    gpus(1)
    limits = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *given: limits.append(given)
    )
    choose_device(0)
    assert limits == []
    monkeypatch.setenv("FURNACE_RUNS_PER_GPU", "2")
    device = choose_device(0)
    assert limits == [(pytest.approx(0.475), device)]


def test_only_visible_gpu(gpus):
    gpus(1)
    assert [choose_device(rank) for rank in range(3)] == [torch.device("cuda", 0)] * 3


def test_more_ranks_than_gpus(gpus):
    chosen = gpus(2)
    with pytest.raises(
        ConfigError,
        match=f"local rank 2 has no GPU: it sees 2 GPUs on {socket.gethostname()}. Request",
    ):
        choose_device(2)
    assert chosen == []
