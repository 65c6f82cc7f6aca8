"""GPUs, torch and an all-reduce that really runs: asked of a child, since torch is no business of a login command."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from furnace_hpc.diagnostics.report import Check
from furnace_hpc.host.gpu_check import given

TIMEOUT_S = 150  # torch from a cold network file system takes a minute
SLOW_SHARE = 0.6  # of what such a card does
CLASSES_GB_S = {  # memory bandwidth as the makers state it; a copy reaches 85 to 93 % of it
    "H200": 4800,
    "H100": 3350,
    "H800": 3350,
    "A100-SXM4-80": 2039,
    "A100 80": 1935,
    "A100": 1555,
    "V100": 900,
    "L40S": 864,
    "A40": 696,
    "L4": 300,
    "T4": 320,
}


def device_checks() -> list[Check]:
    """What a child with torch says."""
    command = [sys.executable, "-P", "-m", "furnace_hpc.engine.device_probe"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        found = f"torch did not answer within {TIMEOUT_S} s"
        return [
            Check(
                "torch starts",
                "fail",
                found,
                "a GPU or a file system hangs: try `python -c 'import torch'`",
            )
        ]
    lines = done.stdout.strip().splitlines()
    try:
        facts = json.loads(lines[-1])
    except (IndexError, ValueError):
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [
            Check("torch starts", "fail", words, "install the pinned versions (constraints.txt)")
        ]
    return judge(facts, shutil.which("nvidia-smi") is not None)


def judge(facts: dict[str, Any], has_driver: bool) -> list[Check]:
    """Lines about what the child has found."""
    checks = [
        Check(
            "torch starts",
            "ok",
            f"{facts['torch']} in {facts['import_s']:.1f} s, built for {facts['built']}",
        )
    ]
    if facts["deepspeed"].startswith("!"):
        checks.append(
            Check("DeepSpeed starts", "fail", facts["deepspeed"][1:], "install the pinned versions")
        )
    else:
        checks.append(Check("DeepSpeed starts", "ok", facts["deepspeed"]))
    checks += _gpus(facts, has_driver)
    for way in facts["all_reduce"]:
        name = f"{way['backend']} all-reduce"
        if way["error"]:
            hint = "look at the interface that names lead to; network_interface of the profile, GLOO_SOCKET_IFNAME"
            checks.append(Check(name, "fail", way["error"], hint))
        else:
            checks.append(
                Check(
                    name,
                    "ok",
                    f"right, {way['ranks']} processes, {way['gb_s']:.2f} GB/s over 16 MB",
                )
            )
    return checks


def _gpus(facts: dict[str, Any], has_driver: bool) -> list[Check]:
    gave = given(os.environ)
    # of MIG parts, CUDA shows one
    if gave and len(facts["gpus"]) < (1 if "MIG" in gave else gave.count(",") + 1):
        why = facts["cuda_error"] or f"it sees {len(facts['gpus'])}"
        found = (
            f"the job was given {gave}, and torch ({facts['built']}) cannot use all of them: {why}"
        )
        hint = "install torch's CUDA build, or a newer driver; DS_ACCELERATOR=cpu trains on the CPU"
        return [Check("GPUs", "fail", found, hint)]
    if not facts["gpus"]:
        if has_driver:
            found = f"a driver is here, and torch ({facts['built']}) can use no GPU: {facts['cuda_error'] or 'none seen'}"
            hint = (
                "a job sees those it asked for; else install torch's CUDA build, or a newer driver"
            )
            return [Check("GPUs", "warn", found, hint)]
        if given({**os.environ, "DS_ACCELERATOR": ""}):
            found = "the job was given GPUs, and DS_ACCELERATOR=cpu: runs train on the CPU"
            return [Check("GPUs", "warn", found, "unset DS_ACCELERATOR where torch can use them")]
        return [Check("GPUs", "ok", "none here; CPUs train small models")]
    checks = [
        Check("CUDA", "ok", f"{facts['cuda']}, driver {facts['driver']}, NCCL {facts['nccl']}")
    ]
    for gpu in facts["gpus"]:
        stated = next((gb for word, gb in CLASSES_GB_S.items() if word in gpu["name"]), None)
        slow = stated and gpu["gb_s"] < SLOW_SHARE * stated
        rate = f"{gpu['gb_s']:,.0f} GB/s copied" + (f" of {stated:,} stated" if stated else "")
        found = f"{gpu['name']}, {gpu['free_gib']:.0f} of {gpu['total_gib']:.0f} GiB free, {rate}"
        hint = "another process may use it, or it is throttled: nvidia-smi -q" if slow else ""
        checks.append(Check(f"GPU {gpu['index']}", "warn" if slow else "ok", found, hint))
    if all(gpu["bf16"] for gpu in facts["gpus"]):
        checks.append(Check("bf16", "ok", "all GPUs have it"))
    else:
        checks.append(
            Check(
                "bf16",
                "warn",
                "not all GPUs have it",
                "use a DeepSpeed file without bf16 (ds_configs/)",
            )
        )
    return checks
