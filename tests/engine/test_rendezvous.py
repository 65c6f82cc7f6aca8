"""Ranks get the address of rank 0's store with few calls of the shared file system."""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from furnace_hpc.engine.ranks import rendezvous
from furnace_hpc.engine.ranks.rendezvous import Address, publish, wait_for_address

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import many_ranks
from many_ranks import Job

ADDRESS = Address("node0", 29_500)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "attempts").mkdir()
    return tmp_path / "attempts" / "1.rendezvous"


def test_waiting_ranks_make_few_calls(tmp_path: Path):
    """Before, 511 ranks made 20,000 calls per second. Here they wait for some seconds."""
    now = many_ranks.waiting(Job(16, 4), 4.0, many_ranks.wait_as_now, tmp_path / "now")
    assert now["failed_ranks"] == 0
    most = 15 * 2 + rendezvous.CALLS_PER_S * now["waited_s"]
    assert 15 <= now["calls"] <= most, "one rank per node looks, once per 5 s"
    assert now["all_know_after_s"] < 10
    before = many_ranks.waiting(Job(2, 4), 1.0, many_ranks.wait_as_before, tmp_path / "before")
    assert before["calls"] > 7 * 10


def test_files_per_node_and_attempt(tmp_path: Path):
    row = many_ranks.files(Job(3, 4), tmp_path)
    assert (row["logs"], row["verdicts"], row["ranks_known"]) == (3, 3, 12)
    assert row["files_per_node"] == 3
    log = (tmp_path / "logs/1-1.log").read_text()
    assert sorted(log.splitlines()) == [
        *(f"[rank {rank}] hello" for rank in (5, 6, 7)),
        "hello",
    ]


def test_address_reaches_ranks_that_come_late(file: Path):
    with publish(file, ADDRESS):
        for local_rank in (1, 0):
            address, is_open = wait_for_address(file, local_rank, 2, 10)
            is_open.close()
            assert address == ADDRESS


def test_the_bell_ends_a_long_pause(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NNODES", "300")  # a look every 100 s
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    monkeypatch.setenv("SLURM_NODEID", "7")
    found: list[Address] = []
    waiting = threading.Thread(target=lambda: found.append(wait_for_address(file, 0, 300, 60)[0]))
    waiting.start()
    time.sleep(0.5)
    monkeypatch.setenv("SLURM_NODEID", "0")
    with publish(file, ADDRESS):
        waiting.join(15)
    assert found == [ADDRESS]


def test_a_foreign_listener_is_no_address(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Anybody can listen on the port and under the name. Only the file and own processes count."""
    monkeypatch.setenv("SLURM_NNODES", "1")
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    monkeypatch.setattr(rendezvous, "BELL_POLL_S", 0.01)
    port = rendezvous._bell_port(file)
    with socket.create_server(("127.0.0.1", port)):
        assert rendezvous._bell_rings(file)
        with pytest.raises(TimeoutError, match="did not publish its address in .* within 1 s"):
            wait_for_address(file, 0, 4, 1)
    theirs = rendezvous.NodeSocket(file)
    theirs.serve(Address("evil", 1))
    monkeypatch.setattr(rendezvous, "_peer_uid", lambda connection: os.getuid() + 1)
    with pytest.raises(TimeoutError):
        wait_for_address(file, 1, 4, 1)
    file.write_text('{"host": "node0", "port": 29500}')
    assert wait_for_address(file, 1, 4, 10)[0] == ADDRESS, "the file helps if the socket does not"
    theirs.close()
