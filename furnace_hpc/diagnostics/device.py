"""Check GPUs, torch and an all-reduce in a child process, so that the command loads no torch."""

import os
import shutil
from typing import Any

from furnace_hpc.config.hardware.gpu_models import gpu_model
from furnace_hpc.diagnostics.gpus.health import (
    driver_check,
    health_checks,
    mig_checks,
    xid_check,
)
from furnace_hpc.diagnostics.probe import ProbeError, run_probe
from furnace_hpc.diagnostics.report import Check, fail, ok, warn
from furnace_hpc.host.gpu_check import allocated_gpus

TIMEOUT_S = 150  # torch from a cold network file system takes a minute
SLOW_SHARE = 0.6  # of the bandwidth in the data sheet; a copy reaches 85 to 93 % of it
CUDA_BUILD = "install torch's CUDA build, or a newer driver"
PINNED = "install the pinned versions (constraints.txt)"


def device_checks() -> list[Check]:
    """Run `engine/ranks/device_probe.py`, and judge its output."""
    try:
        facts = run_probe("furnace_hpc.engine.ranks.device_probe", TIMEOUT_S)
    except TimeoutError as error:
        hint = "a GPU or a file system hangs: try `python -c 'import torch'`"
        return [fail("torch starts", str(error), hint)]
    except ProbeError as error:
        return [fail("torch starts", str(error), PINNED)]
    checks = judge(facts, shutil.which("nvidia-smi") is not None)
    if facts["gpus"]:
        checks += xid_check()
    return checks


def judge(facts: dict[str, Any], has_driver: bool) -> list[Check]:
    """Judge the output of `engine/ranks/device_probe.py`.

    Args:
        facts: the output.
        has_driver: whether this machine has NVIDIA's driver.
    """
    started = f"{facts['torch']} in {facts['import_s']:.1f} s, built for {facts['built']}"
    deepspeed = ok("DeepSpeed starts", facts["deepspeed"])
    if facts["deepspeed"].startswith("!"):
        deepspeed = fail("DeepSpeed starts", facts["deepspeed"][1:], PINNED)
    if missing := _missing_gpus(facts):
        gpus = [missing]
    elif facts["gpus"]:
        gpus = _gpu_checks(facts)
    else:
        gpus = [_no_gpus(facts, has_driver)]
    gpus = [*driver_check(facts), *gpus, *health_checks(facts["gpus"]), *mig_checks(facts["gpus"])]
    return [ok("torch starts", started), deepspeed, *gpus, *map(_all_reduce, facts["all_reduce"])]


def _all_reduce(result: dict[str, Any]) -> Check:
    name = f"{result['backend']} all-reduce"
    if result["error"]:
        hint = "check the network interface: network_interface in the profile, GLOO_SOCKET_IFNAME"
        return fail(name, result["error"], hint)
    found = f"correct, {result['ranks']} processes, {result['gb_s']:.2f} GB/s for 16 MB"
    return ok(name, found)


def _missing_gpus(facts: dict[str, Any]) -> Check | None:
    """Fail if torch sees fewer GPUs than the job was given."""
    gave = allocated_gpus(os.environ)
    expected = len(gave.split(",")) if gave else 0
    if "MIG" in gave:
        expected = 1  # CUDA shows one MIG part
    if len(facts["gpus"]) >= expected:
        return None
    problem = facts["cuda_error"] or f"it sees {len(facts['gpus'])}"
    found = f"the job was given {gave}, and torch ({facts['built']}) cannot use all of them: "
    found += problem
    return fail("GPUs", found, f"{CUDA_BUILD}; DS_ACCELERATOR=cpu trains on the CPU")


def _no_gpus(facts: dict[str, Any], has_driver: bool) -> Check:
    if has_driver:
        problem = facts["cuda_error"] or "it sees none"
        found = f"there is a driver, but torch ({facts['built']}) can use no GPU: {problem}"
        return warn("GPUs", found, f"in a job, ask for GPUs; otherwise {CUDA_BUILD}")
    if allocated_gpus({**os.environ, "DS_ACCELERATOR": ""}):
        found = "the job was given GPUs, but DS_ACCELERATOR=cpu: runs train on the CPU"
        return warn("GPUs", found, "unset DS_ACCELERATOR if torch can use the GPUs")
    return ok("GPUs", "none; the CPU can train small models")


def _gpu_checks(facts: dict[str, Any]) -> list[Check]:
    software = f"{facts['cuda']}, driver {facts['driver']}, NCCL {facts['nccl']}"
    bf16 = ok("bf16", "all GPUs support it")
    if not all(gpu["bf16"] for gpu in facts["gpus"]):
        bf16 = warn(
            "bf16", "not all GPUs support it", "use a DeepSpeed file without bf16 (ds_configs/)"
        )
    return [ok("CUDA", software), *map(_gpu, facts["gpus"]), bf16]


def _gpu(gpu: dict[str, Any]) -> Check:
    name = f"GPU {gpu['index']}"
    found = f"{gpu['name']}, {gpu['free_gib']:.0f} of {gpu['total_gib']:.0f} GiB free, "
    found += f"{gpu['gb_s']:,.0f} GB/s copied"
    model = gpu_model(gpu["name"])
    expected = model.gb_s if model else 0
    if expected:
        found += f", data sheet {expected:,}"
    if gpu["gb_s"] < SLOW_SHARE * expected:
        return warn(name, found, "another process may use it, or it is throttled: nvidia-smi -q")
    return ok(name, found)
