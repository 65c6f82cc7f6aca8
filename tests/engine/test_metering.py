"""Model FLOPs against hand-worked numbers, MFU, data wait, and energy from a stand-in for NVML."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from make import make_config, make_context
from rank_work import model_of

from furnace_hpc.config.hardware.gpu_models import gpu_model, peak_flops
from furnace_hpc.config.hardware.nvml import Gpu
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.engine.metering import flops, usage
from furnace_hpc.engine.metering.flops import batch_terms, flops_of, step_coefficients
from furnace_hpc.engine.metering.usage import MeteredBatches, StepMeters, Usage, gathered
from furnace_hpc.runs.records.metrics import MEASURED

CPU = torch.device("cpu")


def manifest_of(data: Path, longest: int = 15) -> Manifest:
    """The manifest of a set whose texts have up to this many tokens."""
    manifest = open_columns(data).manifest
    text = manifest.columns["text"].model_copy(update={"shape": (longest,)})
    return manifest.model_copy(update={"columns": manifest.columns | {"text": text}})


def counted(config, data: Path, folder: Path, batch_size: int = 4, longest: int = 15):
    """The model, and the coefficients of a micro-batch of this size."""
    model, manifest = model_of(config, str(data)), manifest_of(data, longest)
    return model, step_coefficients(model, config, manifest, batch_size, folder)


def test_one_more_layer_by_hand(small_data, tmp_path):
    """A BERT layer: 4 products D x D, two D x F, and scores and values of T x T. Three passes."""
    B, D, F, units = 4, 32, 48, 3
    T = units * flops.TEXT_MULTIPLE
    found = []
    for layers in (1, 2):
        config = make_config(model__text_layers=layers)
        _, coefficients = counted(config, small_data, tmp_path, B, longest=T)
        found.append(flops_of(coefficients, (1, units, units**2)))
    assert found[1] - found[0] == 3 * B * (T * (8 * D * D + 4 * D * F) + 4 * T * T * D)


def test_any_length_of_text_is_exact(small_data, tmp_path):
    """Counts at 8, 16 and 24 tokens give the count at 40 tokens."""
    config = make_config(loss__info_nce=0.1)
    model, coefficients = counted(config, small_data, tmp_path, longest=40)
    manifest, values = open_columns(small_data).manifest, flops._meta_values(model)
    direct = flops.count_flops(model, values, config, flops._meta_batch(config, manifest, 4, 40))
    assert flops_of(coefficients, (1, 5, 25)) == direct


@pytest.mark.parametrize(("longest", "possible"), [(7, [7]), (8, [8]), (15, [8, 15])])
def test_short_texts_need_fewer_counts(small_data, tmp_path, monkeypatch, longest, possible):
    """A batch has a multiple of 8 tokens, or as many as the packed texts have. All are exact."""
    config, passes = make_config(), []
    count = flops.count_flops
    monkeypatch.setattr(
        flops, "count_flops", lambda *given: passes.append(count(*given)) or passes[-1]
    )
    _, coefficients = counted(config, small_data, tmp_path, longest=longest)
    assert len(passes) == len(possible)
    for num_tokens, direct in zip(possible, passes, strict=True):
        T = num_tokens / flops.TEXT_MULTIPLE
        assert flops_of(coefficients, (1, T, T * T)) == pytest.approx(direct, rel=1e-12)


def test_a_count_changes_nothing(small_data, tmp_path):
    config = make_config(model__dropout=0.1, model__modality_dropout=0.2)
    model = model_of(config, str(small_data))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert step_coefficients(model, config, open_columns(small_data).manifest, 4, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_runs_of_a_grid_count_once(small_data, tmp_path, monkeypatch):
    config = make_config()
    _, first = counted(config, small_data, tmp_path)
    monkeypatch.setattr(flops, "_count", lambda *arguments: pytest.fail("counted again"))
    assert counted(make_config(seed=5), small_data, tmp_path)[1] == first
    [file] = tmp_path.iterdir()
    file.write_text("[1, 2")
    monkeypatch.setattr(flops, "_count", lambda *arguments: (7.0, 0.0, 0.0))
    assert counted(config, small_data, tmp_path)[1] == (7.0, 0.0, 0.0)


def test_weights_of_terms_need_no_count(small_data, tmp_path, monkeypatch):
    """Their values change no FLOPs, only whether a term is computed."""
    terms = ("alpha", "beta", "info_nce", "vicreg", "unimodal")
    settings = [{f"loss__{name}": weight for name in terms} for weight in (0.1, 0.7)]
    settings[1] |= {"loss__temperature": 0.2, "loss__vicreg_gamma": 2.0}
    config, other = (make_config(**changes) for changes in settings)
    _, first = counted(config, small_data, tmp_path / "first")
    assert counted(other, small_data, tmp_path / "other")[1] == first
    for name in terms[2:]:
        without = config.model_copy(update={"loss": config.loss.model_copy(update={name: 0.0})})
        assert counted(without, small_data, tmp_path / "first")[1] != first
    monkeypatch.setattr(flops, "_count", lambda *arguments: pytest.fail("counted again"))
    assert counted(other, small_data, tmp_path / "first")[1] == first


def test_a_model_that_cannot_be_counted(small_data, tmp_path, monkeypatch, capsys):
    """The run goes ahead without FLOPs."""

    def fails(*arguments):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(flops, "_count", fails)
    assert counted(make_config(), small_data, tmp_path)[1] is None
    assert "FLOPs of the model were not counted: no meta kernel" in capsys.readouterr().out


def test_terms_of_a_batch(small_data):
    reader = BatchReader(open_columns(small_data), "train", ("text", "image"), ("digit",), CPU)
    batch = reader.read(torch.arange(4).numpy())
    units = batch.inputs["text"].shape[1] / 8
    assert batch_terms(batch) == (1, units, units**2)


class Clock:
    now_s = 100.0


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(usage.time, "perf_counter", lambda: Clock.now_s)
    return Clock


class Batches:
    """Three micro-batches of 16 tokens. Each takes half a second to arrive."""

    def of_step(self, step: int):
        for _ in range(3):
            Clock.now_s += 0.5
            yield SimpleNamespace(inputs={"text": torch.zeros(2, 16)})


def meters_of(coefficients=(1e12, 2e12, 1e12), **changes) -> StepMeters:
    context = make_context(make_config(**changes), engine=None)
    context.__dict__["flops"] = coefficients
    return StepMeters(context, Batches())


def test_a_step_by_hand(clock):
    """Three batches of two units: 3 x (1 + 2 x 2 + 4) = 27 TFLOP in 4.5 s, 1.5 s waiting."""
    meters = meters_of()
    meters.start()
    for _ in meters.batches.of_step(0):
        clock.now_s += 1
    found = meters.lap()
    assert (found.train_s, found.data_wait_s, found.flops) == (4.5, 1.5, 27e12)
    record = meters.record(found, steps=1)
    assert set(record) <= MEASURED  # furnace drill does not compare them
    assert record["model_tflop_s"] == pytest.approx(6.0)
    assert record["data_wait_s"] == 1.5
    assert record["peak_memory_gib"] > 0.01
    assert not record.keys() & {"mfu", "energy_j", "peak_reserved_gib"}, "there is no GPU"
    assert meters.stop() == Usage(energy_j=None)


def test_mfu_of_a_known_gpu():
    meters = meters_of()
    meters._peak = peak_flops("NVIDIA A100-SXM4-80GB", "bf16")
    used = Usage(train_s=2.0, flops=312e12, energy_j=None)
    assert meters.record(used, 4)["mfu"] == pytest.approx(0.5)
    assert meters.mfu(Usage(train_s=2.0, flops=None)) is None


class Two:
    """Rank 0 of two. The sum over ranks adds the row of rank 1."""

    rank, world_size, device = 0, 2, CPU

    def __init__(self, *other: float) -> None:
        self.other = torch.tensor(other, dtype=torch.float64)

    def all_reduce_sum(self, rows):
        rows[1] += self.other
        return rows


def test_ranks_add_up(clock):
    """FLOPs of all ranks, the wait of the slowest, and no energy if one rank has none."""
    assert gathered((1.0, 2.0), Two(3.0, 4.0)) == [(1, 2), (3, 4)]
    meters = meters_of()
    meters._processes = Two(9.0, 3, 6, 12, 50.0)
    meters._gpu = SimpleNamespace(energy_j=lambda: 70 * clock.now_s)
    meters.start()
    for _ in meters.batches.of_step(0):
        clock.now_s += 1
    found = meters.lap()
    assert (found.data_wait_s, found.flops) == (9.0, 2 * 27e12)
    assert found.energy_j == pytest.approx(4.5 * 70 + 50)
    assert found.model_tflop_s(2) == pytest.approx(6.0)
    meters._processes = Two(0.0, 0, 0, 0, math.nan)
    assert meters.lap().energy_j is None
    total = Usage(energy_j=5.0)
    total.add(Usage(energy_j=None))
    assert total.energy_j is None, "a part is unknown"


def test_all_batches_are_taken(clock):
    """The iterator is exhausted, as TrainBatches needs it."""
    ended = []

    class Noted(Batches):
        def of_step(self, step: int):
            yield from super().of_step(step)
            ended.append(step)

    metered = MeteredBatches(Noted())
    assert len(list(metered.of_step(4))) == 3
    assert ended == [4]


NVML = """
import json, os
state = json.load(open(os.environ["FAKE_NVML"]))
class NVMLError(Exception): pass
class NVMLLibraryMismatchError(Exception): pass
def nvmlInit():
    if state.get("no_driver"): raise NVMLError("driver not loaded")
    if state.get("mismatch"): raise NVMLLibraryMismatchError("another driver")
def nvmlDeviceGetHandleByUUID(uuid):
    if uuid not in state["gpus"]: raise NVMLError("not found")
    return state["gpus"][uuid]
def nvmlDeviceGetTotalEnergyConsumption(gpu):
    if "energy_mj" not in gpu: raise NVMLError("not supported")
    return gpu["energy_mj"] + 0
"""


@pytest.fixture
def fake_nvml(tmp_path, monkeypatch):
    """A module pynvml in the place of the real one, which needs a driver."""

    def write(**state) -> None:
        (tmp_path / "state.json").write_text(json.dumps(state))
        sys.modules.pop("pynvml", None)

    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "state.json"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    sys.modules.pop("pynvml", None)


def test_energy_from_a_stand_in_for_nvml(fake_nvml):
    fake_nvml(gpus={"GPU-a": {"energy_mj": 5_000}, "GPU-old": {}})
    assert Gpu.of_uuid("a").energy_j() == Gpu.of_uuid("GPU-a").energy_j() == 5.0
    assert Gpu.of_uuid("old").energy_j() is None
    assert Gpu.of_uuid("b") is None
    for reason in ("no_driver", "mismatch"):
        fake_nvml(**{reason: True})
        assert Gpu.of_uuid("a") is None


def test_other_errors_than_those_of_nvml_are_raised(fake_nvml):
    """A mistake of ours must not look like a GPU without NVML."""
    fake_nvml(gpus={"GPU-a": {"energy_mj": "text"}})
    with pytest.raises(TypeError):
        Gpu.of_uuid("a").energy_j()
    fake_nvml(no_gpus=True)
    with pytest.raises(KeyError):
        Gpu.of_uuid("a")


def test_without_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpu.of_uuid("a") is None


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp32", 67),
        ("NVIDIA GH200 480GB", "bf16", 989),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp32", 14),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA A40", "bf16", 149.7),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA L40", "fp32", 90.5),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA RTX A6000", "fp32", 38.7),
        ("NVIDIA RTX 6000 Ada Generation", "fp32", 91.1),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("AMD Instinct MI300X", "bf16", None),
    ],
)
def test_peaks_by_name(name, precision, tera):
    assert peak_flops(name, precision) == (tera and tera * 1e12)


def test_bandwidth_by_name():
    """A PCIe card of H100 has other memory than an SXM module."""
    names = ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA A10")
    assert [gpu_model(name).gb_s for name in names] == [2000, 3350, 2039, 600]
