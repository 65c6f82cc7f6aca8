"""Judge the driver and the health of GPUs: ECC errors, XIDs, clocks, and parts of GPUs (MIG)."""

import re
import subprocess
from collections.abc import Callable
from typing import Any

from furnace_hpc.config.hardware.drivers import install_command, is_too_old, oldest_driver
from furnace_hpc.diagnostics.report import Check, fail, ok, warn

ADMIN = "ask the administrators to drain the node"
# XIDs of broken hardware, as in host/end_reasons.py: https://docs.nvidia.com/deploy/xid-errors/
BROKEN_XIDS = (48, 63, 64, 74, 79, 92, 94, 95, 119, 120)
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([^)]*)\): ([0-9]+)")
KERNEL_LOG_S = 10


def driver_check(facts: dict[str, Any]) -> list[Check]:
    """Whether the driver is new enough for the CUDA of torch. Empty if there is no driver."""
    driver, built = facts.get("driver", "unknown"), facts["built"]
    cuda = built.removeprefix("CUDA ")
    oldest = oldest_driver(cuda)
    if driver == "unknown":
        return []
    if not oldest:
        found = f"{driver}, but torch is built for {built}"
        command = install_command(driver, facts["torch"])
        return [warn("driver", found, command or "its minimum driver is not known here")]
    found = f"{driver}; {built} needs {oldest} or newer"
    if not is_too_old(driver, cuda):
        return [ok("driver", found)]
    hint = f"ask the administrators for driver {oldest} or newer"
    if command := install_command(driver, facts["torch"]):
        hint = f"{command}, or a newer driver"
    return [fail("driver", found, hint)]


def health_checks(gpus: list[dict[str, Any]]) -> list[Check]:
    """One line per GPU that NVML describes, and a line if it describes none."""
    checks = [_health(gpu) for gpu in gpus if gpu.get("health")]
    if not checks and gpus:
        found = "not read: energy, ECC errors and clocks need NVML"
        return [warn("GPU health", found, "pip install nvidia-ml-py")]
    return checks


def _health(gpu: dict[str, Any]) -> Check:
    name, facts = f"GPU {gpu['index']} health", gpu["health"]
    if broken := _broken(facts):
        return fail(name, "; ".join(broken), f"{ADMIN}; runs on it fail or are retried elsewhere")
    rows = facts.get("remapped") or {}
    if rows.get("pending"):
        found = "a row of memory is remapped at the next reset"
        return warn(name, found, "ask the administrators to reset the GPU")
    if facts.get("slowdowns"):
        found = f"slowed down: {', '.join(facts['slowdowns'])}{_clocks(facts)}"
        return warn(name, found, "check cooling and power: nvidia-smi -q -d PERFORMANCE")
    parts = ["no uncorrected ECC errors since the driver was loaded"]
    if facts.get("uncorrected") is None:
        parts = ["ECC is off, or not supported"]
    if ever := facts.get("uncorrected_ever"):
        parts.append(f"{ever} in its life")
    return ok(name, ", ".join(parts) + _clocks(facts))


def _broken(facts: dict[str, Any]) -> list[str]:
    found = []
    if errors := facts.get("uncorrected"):
        found.append(f"{errors} uncorrected ECC errors since the driver was loaded")
    if (facts.get("remapped") or {}).get("failure"):
        found.append("a broken row of memory could not be remapped")
    if xids := [str(xid) for xid in facts.get("xids") or () if xid in BROKEN_XIDS]:
        found.append(f"XID {', '.join(xids)} during this check")
    return found


def _clocks(facts: dict[str, Any]) -> str:
    parts = ""
    if facts.get("sm_mhz") and facts.get("max_sm_mhz"):
        parts += f", {facts['sm_mhz']} of {facts['max_sm_mhz']} MHz"
    if facts.get("temperature_c") is not None:
        parts += f", {facts['temperature_c']} °C"
    return parts


def mig_checks(gpus: list[dict[str, Any]]) -> list[Check]:
    """Explain parts of GPUs (MIG). Empty if there is none."""
    parts = [gpu for gpu in gpus if "MIG" in gpu["name"].split()]
    if parts:
        found = (
            f"{parts[0]['name']} is a part of a GPU: its share of cores and memory is its own. "
            "CUDA shows one part per process, and NCCL cannot connect two parts of one GPU. MFU is "
            "not shown, because a part has no peak in a data sheet"
        )
        return [warn("MIG", found, "use one process per run: processes_per_node: 1")]
    if any((gpu.get("health") or {}).get("mig") for gpu in gpus):
        found = "is on, and this job has a whole GPU or no part: ask for a part as your site says"
        return [warn("MIG", found, "set gpu_type to the part's name, such as 1g.10gb")]
    return []


def kernel_log() -> str:
    """The kernel's messages. Empty if this user may not read them."""
    try:
        done = subprocess.run(
            ["dmesg"], capture_output=True, text=True, errors="replace", timeout=KERNEL_LOG_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode:
        return ""
    return done.stdout


def xid_check(read_log: Callable[[], str] = kernel_log) -> list[Check]:
    """XIDs in the kernel's messages since the node was started. Empty if there is none."""
    found = [(place, int(xid)) for place, xid in _XID.findall(read_log())]
    broken = [f"{xid} on {place}" for place, xid in found if xid in BROKEN_XIDS]
    if broken:
        listed = ", ".join(dict.fromkeys(broken))
        return [warn("XIDs", f"since the node was started: {listed}", ADMIN)]
    return []
