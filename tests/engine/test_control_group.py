"""Ranks exchange flags over a gloo group of their own, one boundary late, without waiting."""

import socket

import pytest
import step_work
import torch
from forked_ranks import run_on_ranks

from furnace_hpc.engine.ranks import distributed, interface
from furnace_hpc.engine.ranks.distributed import Processes, RankInfo
from furnace_hpc.engine.ranks.stop import StopRequest


def test_flags_are_read_one_boundary_later(tmp_path):
    """All ranks read the same at the same boundary, and sending waits for no other rank."""
    first, second = run_on_ranks(step_work.sent_flags, 2, tmp_path)
    *read, backend, sent_s = first
    assert read == second[:5]
    # sent at boundaries 0 to 3; the first boundary exchanges at once
    assert [tuple(flags) for flags in read] == [
        (None, 0),
        (None, 1),
        (None, 1),
        ("SIGTERM", 0),
        ("SIGTERM", 0),
    ]
    assert backend == "ProcessGroupGloo"
    assert sent_s < 0.5, "rank 0 waited for rank 1"


@pytest.mark.slow
def test_steps_read_nothing_back(tmp_path, small_data):
    """The whole loop between two records, DeepSpeed and transformers included, on two ranks."""
    stages = ["zero1", "zero2", "zero3"]
    for places in run_on_ranks(
        step_work.host_reads, 2, tmp_path, stages, str(tmp_path), str(small_data)
    ):
        assert places["zero1"] == places["zero2"] == []
        # DeepSpeed makes the number -1 on the device
        assert {place.partition(":")[0] for place in places["zero3"]} <= {
            "tensor in stage3.py",
            "aten.lift_fresh.default in stage3.py",
        }


def test_a_single_rank_reads_its_flags_at_once():
    stop, alone = StopRequest(), Processes(0, 0, 1, torch.device("cpu"))
    stop.send(alone, busy=3)
    assert stop.receive(alone, busy=1) == (None, 1)


LOOPBACK, ROUTED = "127.0.1.1", "10.1.2.3"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A node of two, whose own name has a loopback address."""
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv(interface.VARIABLE, "")
    monkeypatch.delenv(interface.VARIABLE)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: LOOPBACK)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "ib0")])
    monkeypatch.setattr(interface, "_routed_address", lambda: ROUTED)
    addresses = {"lo": "127.0.0.1", "eth0": "192.168.0.5", "ib0": ROUTED}
    monkeypatch.setattr(interface, "_address_of", addresses.get)
    return monkeypatch


def chosen() -> str | None:
    interface.set_gloo_interface()
    return interface.os.environ.get(interface.VARIABLE)


def test_gloo_gets_the_routed_interface(node):
    assert chosen() == "ib0"


def test_own_name_with_an_address_is_left(node):
    node.setattr(socket, "gethostbyname", lambda name: ROUTED)
    assert chosen() is None


def test_one_node_needs_no_interface(node):
    node.setenv("SLURM_NNODES", "1")
    assert chosen() is None


def test_a_chosen_interface_stays(node):
    node.setenv(interface.VARIABLE, "eth0")
    assert chosen() == "eth0"


def test_without_a_route_nothing_is_set(node):
    node.setattr(interface, "_routed_address", lambda: "")
    assert chosen() is None


def test_the_interface_is_chosen_before_any_group(monkeypatch):
    """Without a GPU the training itself uses gloo."""
    import deepspeed

    calls: list[str] = []

    def note(name: str):
        return lambda *_, **__: calls.append(name)

    monkeypatch.setattr(distributed, "choose_device", lambda rank: torch.device("cpu"))
    for name in ("_set_environment", "_open_store", "check_placements", "_set_timeouts"):
        monkeypatch.setattr(distributed, name, note(name))
    monkeypatch.setattr(distributed.flight_recorder, "set_variables", note("variables"))
    monkeypatch.setattr(distributed, "set_gloo_interface", note("interface"))
    monkeypatch.setattr(deepspeed, "init_distributed", note("DeepSpeed"))
    monkeypatch.setattr(deepspeed.utils.groups, "_get_data_parallel_group", note("its group"))
    monkeypatch.setattr(distributed.dist, "init_process_group", note("group"))
    monkeypatch.setattr(distributed.dist, "new_group", note("control group"))
    distributed.init_process_group(RankInfo(0, 0, 2, None))
    assert calls.index("interface") < calls.index("group") < calls.index("control group")


def test_addresses_of_this_machine():
    assert interface._address_of("lo") == "127.0.0.1"
    assert interface._address_of("no-such-one") == ""
