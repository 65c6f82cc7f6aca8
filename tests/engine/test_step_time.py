"""Step time is measured from boundary to boundary, with the work of the device."""

from types import SimpleNamespace

import pytest
import torch
from make import make_config, make_context

from furnace_hpc.engine import loop, meters
from furnace_hpc.engine.loop import Progress, TrainingLoop
from furnace_hpc.engine.metering import usage
from furnace_hpc.engine.meters import StepClock

CALL_S, STEP_S, OPTIMIZER_S = 0.01, 0.06, 0.03


class Device:
    """A GPU that still works when the calls have returned. Time passes only here."""

    def __init__(self) -> None:
        self.now_s, self.busy_until_s, self.waits = 100.0, 0.0, 0

    def launch(self) -> None:
        """One step: the host is done long before the device."""
        self.now_s += CALL_S
        begins_s = max(self.now_s, self.busy_until_s)
        self.busy_until_s = begins_s + STEP_S + OPTIMIZER_S

    def synchronize(self, device: torch.device) -> None:
        self.waits += 1
        self.now_s = max(self.now_s, self.busy_until_s)


@pytest.fixture
def device(monkeypatch):
    found = Device()
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    monkeypatch.setattr(meters.time, "perf_counter", lambda: found.now_s)
    return found


def test_clock_waits_for_the_device(device):
    """Ten steps of 90 ms of device work take 0.9 s, not the 0.1 s of their calls."""
    clock = StepClock(torch.device("cuda"))
    clock.start()
    for _ in range(10):
        clock.start()
        device.launch()
    assert device.waits == 0
    assert clock.stop() == pytest.approx(CALL_S + 10 * (STEP_S + OPTIMIZER_S))
    device.now_s += 5  # an evaluation
    assert clock.lap() == clock.stop() == 0
    clock.start()
    device.launch()
    assert clock.lap() == pytest.approx(CALL_S + STEP_S + OPTIMIZER_S)
    device.launch()
    assert clock.lap() == pytest.approx(CALL_S + STEP_S + OPTIMIZER_S)


def test_clock_of_a_cpu_waits_for_nothing(device):
    clock = StepClock(torch.device("cpu"))
    clock.start()
    device.launch()
    assert clock.stop() == pytest.approx(CALL_S)
    assert device.waits == 0


class Saver:
    busy, saved = 0, 0

    def is_due(self, step: int, busy: int) -> bool:
        return step == 6

    def advance(self, step: int) -> None:
        pass

    def begin(self, state: dict, is_best: bool = False) -> None:
        self.saved, self.state = state["step"], state


class Verdicts:
    def at(self, step: int) -> None:
        pass


def test_records_and_result_add_up(device, monkeypatch, tmp_path):
    """Twelve steps of 90 ms, a record every four, a checkpoint after six that takes 7 s."""
    records: list[dict] = []
    config = make_config(log_every=4, evaluation__every=100, steps=13)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    engine = SimpleNamespace(get_global_grad_norm=lambda: None, optimizer=optimizer)
    context = make_context(config, engine, folder=tmp_path)
    context.processes.__dict__["device"] = torch.device("cuda")
    monkeypatch.setattr(usage, "_gpu_of", lambda device: None)
    monkeypatch.setattr(usage, "device_name", lambda device: "NVIDIA A40")
    monkeypatch.setattr(usage, "memory_gib", lambda device: (2.0, 3.0))
    run = TrainingLoop(context, None, Verdicts(), Progress())
    run._metrics = type("Metrics", (), {"write": lambda self, record: records.append(record)})()

    def train_step(*arguments):
        device.launch()
        return {"loss": torch.zeros(())}

    def check_finite():
        device.now_s += 7

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(
        loop, "_train_record", lambda step, means, e, c, step_s: {"step": step, "s": step_s}
    )
    monkeypatch.setattr(run, "_check_finite", check_finite)
    saver = Saver()
    for _ in range(12):
        assert run._step_boundary(saver) is None
        run._train_one_step()
    work_s = STEP_S + OPTIMIZER_S
    assert [record["step"] for record in records] == [4, 8, 12]
    assert [record["s"] for record in records] == pytest.approx([work_s] * 3, abs=CALL_S)
    assert all(record["peak_reserved_gib"] == 3.0 for record in records)
    assert run._progress.train_s == pytest.approx(12 * work_s, abs=5 * CALL_S)
    assert saver.state["train_s"] == pytest.approx(6 * work_s, abs=3 * CALL_S)
    assert device.waits == 4, "three records and one checkpoint"
