"""Driver, health of GPUs, MIG, mixed types and two nodes, from facts as probes print them."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_device_checks import FACTS, H100, SOFTWARE

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.config.hardware import drivers
from furnace_hpc.config.hardware.nvml import Gpu
from furnace_hpc.diagnostics import device
from furnace_hpc.diagnostics.gpus import health, two_nodes
from furnace_hpc.diagnostics.partitions import Partition, node_kinds
from furnace_hpc.diagnostics.slurm_partitions import mixed_gpus
from furnace_hpc.engine.ranks.link_speed import fastest_link

CU126 = "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126"


@pytest.mark.parametrize(
    ("driver", "built", "level", "hint"),
    [
        ("580.65.06", "CUDA 13.0", "ok", ""),
        ("590.1", "CUDA 13.0", "ok", ""),
        ("570.133.20", "CUDA 13.0", "fail", f"{CU126}, or a newer driver"),
        ("525.60.13", "CUDA 12.6", "ok", ""),
        ("525.60.12", "CUDA 12.6", "fail", "ask the administrators for driver 525.60.13 or newer"),
        ("470.82", "CUDA 13.0", "fail", "ask the administrators for driver 580 or newer"),
        ("570.1", "CPUs", "warn", CU126),
    ],
)
def test_driver_and_the_command_that_fits(driver, built, level, hint):
    facts = FACTS | {"torch": "2.13.0+cu130", "built": built, "driver": driver}
    [check] = health.driver_check(facts)
    assert (check.level, check.hint) == (level, hint)


def test_a_machine_without_driver():
    assert health.driver_check(FACTS | {"driver": "unknown"}) == []
    assert not drivers.is_too_old("unknown", "13.0")
    assert drivers.numbers("535.183.01") == (535, 183, 1)


GOOD = {
    "uncorrected": 0,
    "uncorrected_ever": 0,
    "remapped": {"uncorrectable": 0, "pending": 0, "failure": 0},
    "slowdowns": [],
    "xids": [],
    "temperature_c": 61,
    "sm_mhz": 1410,
    "max_sm_mhz": 1980,
    "mig": False,
}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        (
            {},
            "ok",
            "no uncorrected ECC errors since the driver was loaded, 1410 of 1980 MHz, 61 °C",
        ),
        ({"uncorrected_ever": 3}, "ok", "3 in its life"),
        ({"uncorrected": None, "uncorrected_ever": None}, "ok", "ECC is off"),
        ({"uncorrected": 2}, "fail", "2 uncorrected ECC errors"),
        ({"remapped": {"pending": 1, "failure": 0}}, "warn", "remapped at the next reset"),
        ({"remapped": {"pending": 0, "failure": 1}}, "fail", "could not be remapped"),
        ({"xids": [79]}, "fail", "XID 79 during this check"),
        ({"xids": [13]}, "ok", "no uncorrected"),
        ({"slowdowns": ["hardware slowdown"]}, "warn", "slowed down: hardware slowdown"),
    ],
)
def test_health(changes, level, words):
    [check] = health.health_checks([H100 | {"health": GOOD | changes}])
    assert (check.name, check.level) == ("GPU 0 health", level)
    assert words in check.found


def test_health_without_nvml():
    [check] = health.health_checks([H100])
    assert (check.level, check.hint) == ("warn", "pip install nvidia-ml-py")
    assert health.health_checks([]) == []


def test_mig_is_explained():
    part = H100 | {"name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb"}
    found = {check.name: check for check in device.judge(FACTS | SOFTWARE | {"gpus": [part]}, True)}
    assert "NCCL cannot connect two parts of one GPU" in found["MIG"].found
    assert found["GPU 0"].level == "ok", "a part has another bandwidth than the data sheet"
    whole = H100 | {"health": GOOD | {"mig": True}}
    [check] = health.mig_checks([whole])
    assert check.level == "warn"
    assert health.mig_checks([H100]) == []


def test_xids_in_the_kernel_log():
    log = "[1.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n"
    log += "[9.0] NVRM: Xid (PCI:0000:3b:00): 13, Graphics Exception\n" + log
    [check] = health.xid_check(lambda: log)
    assert (check.level, check.found) == ("warn", "since the node was started: 79 on 0000:3b:00")
    assert health.xid_check(lambda: "") == []


def test_a_pcie_card_is_not_slow():
    """Its memory is slower than that of an SXM module."""
    card = H100 | {"name": "NVIDIA H100 PCIe", "gb_s": 1750.0}
    checks = device.judge(FACTS | SOFTWARE | {"gpus": [card]}, has_driver=True)
    [check] = [check for check in checks if check.name == "GPU 0"]
    assert (check.level, "data sheet 2,000" in check.found) == ("ok", True)


def test_mixed_types_in_a_partition():
    kinds = node_kinds([(True, 64, 9, {"a100": 4}), (True, 64, 9, {"v100": 4})])
    part = Partition("gpu", True, True, None, 0, "", kinds)
    profile = {"name": "x", "executor": "slurm", "gpu_flag": "gres"}
    [check] = mixed_gpus([part], ClusterProfile.model_validate(profile))
    assert (check.level, check.found[:11]) == ("warn", "a100, v100:")
    assert mixed_gpus([part], ClusterProfile.model_validate(profile | {"gpu_type": "a100"})) == []
    same = Partition("gpu", True, True, None, 0, "", kinds[:1])
    assert mixed_gpus([same], None) == []


class NVMLError(Exception):
    """As pynvml has it."""


def no_events() -> None:
    raise NVMLError("not supported")


NVML = {
    "NVMLError": NVMLError,
    "nvmlEventSetCreate": no_events,
    "nvmlInit": lambda: None,
    "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
    "nvmlDeviceGetTotalEccErrors": lambda gpu, kind, counter: 10 * kind + counter,
    "nvmlDeviceGetRemappedRows": lambda gpu: (5, 1, 0, 0),
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: 0x04 | 0x40,
    "nvmlDeviceGetTemperature": lambda gpu, sensor: 70,
    "nvmlDeviceGetMigMode": lambda gpu: [1, 1],
}


def test_facts_of_a_stand_in_for_nvml(monkeypatch):
    """A module with the functions of an older driver. The power cap is no slowdown."""
    module = ModuleType("pynvml")
    module.__dict__.update(NVML)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    gpu = Gpu.of_uuid("a")
    facts = gpu.facts()
    assert (facts["uncorrected"], facts["uncorrected_ever"]) == (10, 11)
    assert facts["remapped"] == {"uncorrectable": 1, "pending": 0, "failure": 0}
    assert facts["slowdowns"] == ["hardware thermal slowdown"]
    assert (facts["mig"], facts["sm_mhz"], facts["temperature_c"]) == (True, None, 70)
    gpu.watch_xids()
    assert gpu.xids() == []
    module.nvmlEventSetCreate = int
    with pytest.raises(AttributeError, match="nvmlDeviceRegisterEvents"):
        gpu.watch_xids()


LINK = {"name": "mlx5_0 port 1", "gb_s": 25.0}
RESULT = {
    "error": "",
    "backend": "nccl",
    "ranks": 2,
    "mb": 268.4,
    "bus_gb_s": 20.5,
    "hosts": ["n1", "n2"],
    "links": [LINK, LINK],
}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "ok", "20.50 GB/s for 268 MB between n1, n2; link mlx5_0 port 1 should give 25.0"),
        ({"bus_gb_s": 1.1}, "warn", "1.10 GB/s"),
        ({"links": [LINK, {"name": "eth0", "gb_s": 0.0}]}, "ok", "rate of link eth0 is not known"),
        ({"hosts": ["n1", "n1"], "bus_gb_s": 0.1}, "ok", "which are one machine"),
        ({"error": "the sum is wrong"}, "fail", "the sum is wrong"),
    ],
)
def test_rate_between_two_nodes(changes, level, words):
    check = two_nodes.judge(RESULT | changes)
    assert (check.level, words in check.found) == (level, True), check.found


def test_the_job_of_two_nodes(tmp_path, monkeypatch):
    profile = {"name": "x", "executor": "slurm", "gpu_flag": "gres", "gpu_type": "a100"}
    profile |= {"partition": "gpu", "network_interface": "ib0", "python": "/py", "setup": ["true"]}
    command = two_nodes.srun_command(ClusterProfile.model_validate(profile), tmp_path / "r")
    assert command[:5] == [
        *("srun", "--job-name=furnace-doctor", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1")
    ]
    assert {"--partition=gpu", "--gres=gpu:a100:1"} < set(command)
    assert "export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0" in command[-7]
    assert command[-5:] == ["/py", "-P", "-m", two_nodes.MODULE, str(tmp_path / "r")]
    done = subprocess.CompletedProcess([], 1, "", "srun: error: Unable to allocate resources: no")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    section = two_nodes.two_node_section(None, tmp_path / "runs")
    assert [check.level for check in section.checks] == ["warn"]
    assert list((tmp_path / "runs").iterdir()) == []
    done.stdout = f"a banner\n{json.dumps(RESULT)}\n"
    assert two_nodes.two_node_section(None, tmp_path / "runs").checks[0].level == "ok"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_links_of_a_node(tmp_path, monkeypatch):
    """The fastest active port of InfiniBand for NCCL, else the interface of IP."""
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    sys_class, routes = tmp_path / "class", tmp_path / "route"
    write(routes, "Iface Destination\neth9 0000000A\neth0 00000000\n")
    write(sys_class / "net/eth0/speed", "10000\n")
    write(sys_class / "net/ib0/speed", "-1\n")
    assert fastest_link(True, sys_class, routes) == {"name": "eth0", "gb_s": 1.25}
    for number, (state, rate) in enumerate([("4: ACTIVE", "200 Gb/sec"), ("1: DOWN", "400 Gb")]):
        write(sys_class / f"infiniband/mlx5_{number}/ports/1/state", state)
        write(sys_class / f"infiniband/mlx5_{number}/ports/1/rate", f"{rate} (4X HDR)")
    assert fastest_link(True, sys_class, routes) == {"name": "mlx5_0 port 1", "gb_s": 25.0}
    assert fastest_link(False, sys_class, routes)["name"] == "eth0"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert fastest_link(False, sys_class, routes) == {"name": "ib0", "gb_s": 0.0}
    assert fastest_link(False, tmp_path / "none", tmp_path / "none")["gb_s"] == 0.0
