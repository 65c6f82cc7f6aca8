"""Portable runs: the recorded bits on every machine, and refusals where they cannot be had."""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import portable_run
import pytest
import torch
import yaml
from made_once import made_once

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.diagnostics.portable import EXPECTED
from furnace_hpc.engine import portable
from furnace_hpc.host.portable import ENVIRONMENT
from furnace_hpc.launch.local_queue import find_slots
from furnace_hpc.model import square_root

CPU = torch.device("cpu")
RECORDED = json.loads(portable_run.REFERENCE.read_text())
PROBE = [sys.executable, "-P", "-m", "furnace_hpc.engine.portable_probe"]


def test_a_gpu_is_refused():
    message = r"for CPUs alone, and this rank on .* has cuda:1\. Submit with --set portable=false"
    with pytest.raises(ConfigError, match=message):
        portable.set_up_portable(torch.device("cuda", 1))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process in which torch was imported with the variables."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("furnace_hpc.host.portable._prepared", [True])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return monkeypatch


def test_the_right_process_is_accepted(environment):
    portable.set_up_portable(CPU)


def test_other_instructions_of_torch_are_refused(environment):
    environment.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with pytest.raises(ConfigError, match="torch uses AVX512 on this CPU, wanted AVX2"):
        portable.set_up_portable(CPU)


def test_more_threads_are_refused(environment):
    environment.setattr(torch, "get_num_threads", lambda: 4)
    with pytest.raises(ConfigError, match="torch has 4 threads, wanted 1"):
        portable.set_up_portable(CPU)


def test_a_missing_variable_is_refused(environment):
    environment.delenv("MKL_CBWR")
    with pytest.raises(ConfigError, match="MKL_CBWR is not set in this process"):
        portable.set_up_portable(CPU)


def test_the_local_queue_gives_portable_runs_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert find_slots(1).gpus == ((0,), (1,))
    slots = find_slots(1, on_gpus=False)
    assert (slots.gpus, slots.num_threads) == ((), 1)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        hashes = portable_run.pack(root / "tridigits", portable_run.FULL | {"speech": "bank"})
        assert hashes["fingerprint"] == RECORDED["fingerprint"], "the packed data differ"

    return made_once(tmp_path_factory, "portable", make)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_has_the_recorded_bits(data_root: Path, tmp_path: Path):
    """100 steps of the demo's first row, by `furnace train`."""
    folder = portable_run.make_run(tmp_path, data_root / "tridigits", portable_run.make_grid())
    found = portable_run.train(folder, data_root)
    assert found["parameters_sha256"] == RECORDED["parameters_sha256"]
    assert found["num_threads"] == 1


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_local_queue_has_the_recorded_bits(data_root: Path, tmp_path: Path):
    grid = portable_run.make_grid()
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid.model_dump(mode="json")))
    words = ["--grid", "grid.yaml", "--cluster", "local", "--data-root", str(data_root)]
    portable_run.run([sys.executable, "-m", "furnace_hpc.submit", *words], tmp_path, MKL_CBWR="AVX")
    [folder] = (tmp_path / "runs" / grid.name).glob("base-s0-*")
    found = portable_run.result_of(folder)
    assert found["parameters_sha256"] == RECORDED["parameters_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_without_portable_the_bits_are_others(data_root: Path, tmp_path: Path):
    """So the comparison can fail: on each CPU this run takes other instructions."""
    grid = portable_run.make_grid(portable=False)
    folder = portable_run.make_run(tmp_path, data_root / "tridigits", grid)
    found = portable_run.train(folder, data_root, "env", "OMP_NUM_THREADS=1")
    assert found["parameters_sha256"] != RECORDED["parameters_sha256"]


def test_all_square_roots_are_rounded_correctly():
    """MKL's are not: some of these differ, in ways that depend on the CPU."""
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 200
    wanted = torch.from_numpy(np.sqrt(x.numpy()))  # by the CPU's own instruction
    square_root.round_correctly(True)
    try:
        with square_root.correct_roots():
            found = [x.sqrt(), torch.sqrt(x), x.pow(0.5), torch.pow(x, 0.5), x**0.5]
            found.append(x.clone().sqrt_())
            assert torch.equal(x.pow(2), x * x)
            exponents = torch.tensor([0.5, 2.0])
            assert torch.equal(torch.pow(4.0, exponents), torch.tensor([2.0, 16.0]))
            assert x.double().sqrt().dtype == torch.float64
    finally:
        square_root.round_correctly(False)
    for root in found:
        assert torch.equal(root, wanted)
    assert isinstance(square_root.correct_roots(), nullcontext)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_emulated_run_has_the_same_bits(tmp_path: Path):
    """One step of `furnace train`, with DeepSpeed, on this CPU and on one of another vendor."""
    if not shutil.which("qemu-x86_64"):
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    data = tmp_path / "data" / "tridigits"
    portable_run.pack(data, portable_run.TINY)
    grid = portable_run.make_grid(1, **portable_run.TINY_MODEL)
    hashes = set()
    for name, emulator in (("native", []), ("other", ["qemu-x86_64", "-cpu", other_cpu()])):
        folder = portable_run.make_run(tmp_path / name, data, grid)
        hashes.add(portable_run.train(folder, data.parent, *emulator)["parameters_sha256"])
    assert len(hashes) == 1


def other_cpu() -> str:
    """A CPU of the other vendor. The tests above take the instructions of this one's."""
    is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return "Haswell-v4" if is_amd else "EPYC-Rome"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_emulated_cpu_has_the_recorded_bits(tmp_path: Path):
    """A short training under qemu-user, as on a CPU of another vendor."""
    if not shutil.which("qemu-x86_64"):
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    wanted = EXPECTED[torch.__version__.partition("+")[0]]
    words = ["qemu-x86_64", "-cpu", other_cpu(), *PROBE]
    printed = portable_run.run(words, tmp_path, **ENVIRONMENT)
    assert json.loads(printed.splitlines()[-1])["parameters_sha256"] == wanted
