"""Which device a rank gets, and what is said of ranks that are in each other's way."""

import os
import socket

import pytest
import torch

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.engine.devices import RankPlacement, choose_device, problems

CPU = torch.device("cpu")


def place(
    rank: int, gpu: str = "", cores: str = "0123", threads: int = 1, host: str = "node1"
) -> RankPlacement:
    return RankPlacement(rank, host, gpu, frozenset(map(int, cores)), threads)


FINE = {
    "no ranks": [],
    "one rank on one core": [place(0, cores="0", threads=8)],
    "a GPU and cores each": [place(0, "GPU-a", "01"), place(1, "GPU-b", "23")],
    "all on the CPU, cores for all": [place(rank) for rank in range(4)],
    "two threads each, cores for both": [place(0, threads=2), place(1, threads=2)],
    "one core each": [place(0, cores="0"), place(1, cores="1")],
    "the same numbers on two hosts": [place(0, "GPU-a", "0"), place(1, "GPU-a", "0", host="node2")],
}


@pytest.mark.parametrize("case", FINE)
def test_ranks_that_are_not_in_each_others_way_are_fine(case):
    assert problems(FINE[case]) == ("", "")


def test_two_ranks_on_one_gpu_are_named_with_it():
    places = [place(0, "GPU-a"), place(1, "GPU-b"), place(2, "GPU-b"), place(3, "GPU-b")]
    wrong, crowded = problems(places)
    assert wrong.startswith(
        "ranks 1 and 2 on node1 have one GPU (GPU-b): ask for as many GPUs per node as "
    )
    assert "CUDA_VISIBLE_DEVICES" in wrong
    assert crowded == ""


def test_ranks_on_one_gpu_are_found_on_any_host_in_any_order():
    places = [place(2, "GPU-a", host="node2"), place(0, "GPU-a"), place(3, "GPU-a", host="node2")]
    wrong, _ = problems(places)
    assert wrong.startswith("ranks 2 and 3 on node2 have one GPU (GPU-a)")


@pytest.mark.parametrize(
    ("cores", "threads", "wanted"), [("0", 1, 3), ("01", 1, 3), ("0123", 2, 6)]
)
def test_ranks_that_all_share_too_few_cores_are_told(cores, threads, wanted):
    wrong, crowded = problems([place(rank, f"GPU-{rank}", cores, threads) for rank in range(3)])
    assert wrong == ""
    numbers = [int(core) for core in cores]
    assert crowded.startswith(
        f"all 3 ranks on node1 share the cores {numbers}, and want {wanted}: "
    )
    assert crowded.endswith("set cpus_per_task in the profile")


def test_one_crowded_host_of_two_is_told_and_both_problems_at_once():
    crowd = [place(2, "GPU-a", "0", host="node2"), place(3, "GPU-a", "0", host="node2")]
    wrong, crowded = problems([place(0, "GPU-a", "0"), place(1, "GPU-b", "1"), *crowd])
    assert wrong.startswith("ranks 2 and 3 on node2 have one GPU")
    assert crowded.startswith("all 2 ranks on node2 share the cores [0], and want 2")


def test_this_processs_place_is_what_the_system_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert RankPlacement.here(5, CPU) == RankPlacement(
        5, socket.gethostname(), "", frozenset(os.sched_getaffinity(0)), 3
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert RankPlacement.here(0, CPU).num_threads == torch.get_num_threads()


def no_cuda(monkeypatch, **variables: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("visible", ["0", "0,1,2,3", "GPU-8f3c", "MIG-1"])
def test_gpus_that_torch_cannot_use_are_refused_by_name(monkeypatch, visible):
    no_cuda(monkeypatch, CUDA_VISIBLE_DEVICES=visible)
    with pytest.raises(ConfigError) as refused:
        choose_device(0)
    message = str(refused.value)
    assert message.startswith(
        f"this rank was given GPUs {visible}, and torch {torch.__version__} can use none: "
    )
    assert f"nvidia-smi on {socket.gethostname()}" in message
    assert message.endswith("DS_ACCELERATOR=cpu trains on the CPU")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert choose_device(0) == CPU


def test_without_gpus_a_rank_is_on_the_cpu(monkeypatch):
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
    """A function that makes torch show as many GPUs, and returns those that were set."""
    taken = []

    def show(count: int):
        monkeypatch.delenv("DS_ACCELERATOR", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", taken.append)
        return taken

    return show


def test_each_rank_takes_the_gpu_of_its_own_number(gpus):
    taken = gpus(4)
    wanted = [torch.device("cuda", rank) for rank in range(4)]
    assert [choose_device(rank) for rank in range(4)] == wanted
    assert taken == wanted


def test_a_rank_that_sees_one_gpu_takes_it_whatever_its_number(gpus):
    gpus(1)
    assert [choose_device(rank) for rank in range(3)] == [torch.device("cuda", 0)] * 3


def test_a_rank_beyond_the_last_gpu_is_refused(gpus):
    taken = gpus(2)
    with pytest.raises(
        ConfigError, match=f"local rank 2 has no GPU: {socket.gethostname()} shows 2 to it: ask for"
    ):
        choose_device(2)
    assert taken == []
