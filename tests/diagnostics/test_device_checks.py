"""Checks of GPUs, torch and the all-reduce, from outputs of the device probe."""

import shutil
import sys

import pytest

from furnace_hpc.diagnostics import device

FACTS = {
    "torch": "2.13.0",
    "import_s": 2.0,
    "built": "CUDA 13.0",
    "cuda_error": "",
    "gpus": [],
    "deepspeed": "0.19.8",
    "all_reduce": [],
}
SOFTWARE = {"cuda": "13.0", "driver": "580.1", "nccl": "2.28.1"}
H100 = {
    "index": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "free_gib": 78.0,
    "total_gib": 79.0,
    "bf16": True,
    "gb_s": 2900.0,
}


@pytest.mark.parametrize(
    ("changes", "line", "level"),
    [
        ({"deepspeed": "!ImportError: no"}, "DeepSpeed starts", "fail"),
        (
            {
                "all_reduce": [
                    {"backend": "gloo", "ranks": 2, "error": "Connection refused", "gb_s": 0.0}
                ]
            },
            "gloo all-reduce",
            "fail",
        ),
        (
            {"all_reduce": [{"backend": "gloo", "ranks": 2, "error": "", "gb_s": 1.0}]},
            "gloo all-reduce",
            "ok",
        ),
        ({"gpus": [H100]}, "GPU 0", "ok"),
        ({"gpus": [H100 | {"gb_s": 900.0}]}, "GPU 0", "warn"),
        ({"gpus": [H100 | {"bf16": False}]}, "bf16", "warn"),
        ({"cuda_error": "driver too old"}, "GPUs", "warn"),
    ],
)
def test_results_of_the_device_probe(changes, line, level):
    found = device.judge(FACTS | SOFTWARE | changes, has_driver=True)
    assert {check.name: check.level for check in found}[line] == level


def test_a_device_probe_that_does_not_start(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    [check] = device.device_checks()
    assert (check.level, check.found) == ("fail", "exit code 1")


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        ({}, "ok"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "fail"),
        ({"SLURM_GPUS_ON_NODE": "2"}, "fail"),
        ({"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "fail"),
        ({"SLURM_JOB_GPUS": "3"}, "fail"),
        ({"SLURM_GPUS_ON_NODE": "0"}, "ok"),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": ""}, "ok"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cpu"}, "warn"),
    ],
)
@pytest.mark.parametrize("has_driver", [True, False])
def test_given_gpus_that_torch_cannot_use(monkeypatch, variables, level, has_driver):
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    checks = device.judge(FACTS, has_driver)
    [found] = [check for check in checks if check.name == "GPUs"]
    assert found.level == ("warn" if level == "ok" and has_driver else level)


def test_fewer_gpus_than_given(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    known = FACTS | SOFTWARE | {"gpus": [H100]}
    for given, level in (("0,1", "fail"), ("0", None), ("MIG-a,MIG-b", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        found = {check.name: check.level for check in device.judge(known, True)}
        assert found.get("GPUs") == level
