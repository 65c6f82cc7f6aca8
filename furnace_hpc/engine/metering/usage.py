"""Measure what training steps use, from boundary to boundary, over all ranks."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from furnace_hpc.config.hardware.gpu_models import peak_flops
from furnace_hpc.config.hardware.nvml import Gpu
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.batches import Batch
from furnace_hpc.data.loading.prefetch import TrainBatches
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.metering.flops import batch_terms, flops_of
from furnace_hpc.engine.meters import StepClock, device_name, memory_gib


@dataclass
class Usage:
    """What training steps have used. Sums over steps."""

    train_s: float = 0.0
    data_wait_s: float = 0.0
    """Seconds in which the slowest rank waited for its next batch. Part of `train_s`."""
    flops: float | None = 0.0
    """Model FLOPs of all ranks. None if they are not known."""
    energy_j: float | None = 0.0
    """Joules of all GPUs. None if one cannot be read."""

    def add(self, other: "Usage") -> None:
        """Add what later steps have used. A sum with an unknown part is unknown."""
        self.train_s += other.train_s
        self.data_wait_s += other.data_wait_s
        self.flops = _sum(self.flops, other.flops)
        self.energy_j = _sum(self.energy_j, other.energy_j)

    def model_tflop_s(self, world_size: int) -> float | None:
        """Model TFLOP/s of one rank. None if unknown."""
        if not self.flops or not self.train_s:
            return None
        return self.flops / self.train_s / world_size / 1e12


def _sum(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return one + other


class MeteredBatches:
    """The batches of each step. It measures the wait for each batch, and notes its size."""

    def __init__(self, batches: TrainBatches) -> None:
        self._batches = batches
        self.waited_s = 0.0
        self.terms = (0.0, 0.0, 0.0)

    def of_step(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of a step, counted from 0."""
        batches = iter(self._batches.of_step(step))
        while True:
            since_s = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - since_s
            if batch is None:
                return
            one, linear, quadratic = batch_terms(batch)
            self.terms = (
                self.terms[0] + one,
                self.terms[1] + linear,
                self.terms[2] + quadratic,
            )
            yield batch

    def take(self) -> tuple[float, ...]:
        """Seconds waited and sums of terms since the last call."""
        found = (self.waited_s, *self.terms)
        self.waited_s, self.terms = 0.0, (0.0, 0.0, 0.0)
        return found


class StepMeters:
    """Time, data wait, FLOPs and energy of training steps. Readings are collective.

    A reading makes one small all-reduce. So meters are read only where training pauses or a record
    is written.
    """

    def __init__(self, context: RunContext, batches: TrainBatches) -> None:
        self.batches = MeteredBatches(batches)
        self._processes, self._coefficients = context.processes, context.flops
        self._clock = StepClock(context.processes.device)
        self._gpu = _gpu_of(context.processes.device)
        self._since_j: float | None = None
        """Energy at the last reading. None while the meters are stopped."""
        self._peak: float | None = None
        if context.processes.device.type == "cuda":
            name = device_name(context.processes.device)
            self._peak = peak_flops(name, precision_of(context.config))

    def start(self) -> None:
        """Start the meters, unless they run."""
        self._clock.start()
        if self._since_j is None and self._gpu:
            self._since_j = self._gpu.energy_j()
            if self._since_j is None:  # not supported, so it is not asked again
                self._gpu = None

    def lap(self) -> Usage:
        """Collective. Return the usage since the last reading or the start. Meters continue."""
        return self._read(self._clock.lap())

    def stop(self) -> Usage:
        """Collective. Return the usage since the last reading or the start. Meters stop."""
        usage = self._read(self._clock.stop())
        self._since_j = None
        return usage

    def record(self, usage: Usage, steps: int) -> dict[str, Any]:
        """The entries of a line of the metrics file, of the steps with this usage.

        Means per step: data_wait_s. Sums: energy_j. Peaks since the start: memory of this rank.
        """
        tflop_s = usage.model_tflop_s(self._processes.world_size)
        allocated, reserved = memory_gib(self._processes.device)
        entries = {
            "model_tflop_s": tflop_s,
            "mfu": self.mfu(usage),
            "data_wait_s": usage.data_wait_s / steps,
            "peak_memory_gib": allocated,
            "peak_reserved_gib": reserved,
            "energy_j": usage.energy_j,
        }
        return {name: value for name, value in entries.items() if value is not None}

    def mfu(self, usage: Usage) -> float | None:
        """Share of the device's peak. None if the device or the FLOPs are unknown."""
        tflop_s = usage.model_tflop_s(self._processes.world_size)
        if tflop_s is None or self._peak is None:
            return None
        return tflop_s * 1e12 / self._peak

    def _read(self, seconds: float) -> Usage:
        energy_j = self._energy_j()
        # A sum with NaN is NaN, so a rank that cannot read its energy makes it unknown.
        own = (*self.batches.take(), float("nan") if energy_j is None else energy_j)
        rows = gathered(own, self._processes)
        waits, *terms, energies = zip(*rows, strict=True)
        usage = Usage(train_s=seconds, data_wait_s=max(waits), flops=None, energy_j=None)
        if self._coefficients is not None:
            usage.flops = flops_of(self._coefficients, tuple(map(sum, terms)))
        total_j = sum(energies)
        if total_j == total_j:
            usage.energy_j = total_j
        return usage

    def _energy_j(self) -> float | None:
        """Joules of this rank's GPU since the last reading. None if they cannot be read."""
        if self._gpu is None:
            return None
        now_j, since_j = self._gpu.energy_j(), self._since_j
        self._since_j = now_j
        if now_j is None:
            return None
        if since_j is None:  # the meters were stopped
            return 0.0
        return now_j - since_j


def gathered(own: tuple[float, ...], processes: Any) -> list[tuple[float, ...]]:
    """Collective. The numbers of all ranks, in order."""
    if processes.world_size == 1:
        return [own]
    rows = torch.zeros(processes.world_size, len(own), dtype=torch.float64)
    rows[processes.rank] = torch.tensor(own, dtype=torch.float64)
    summed = processes.all_reduce_sum(rows.to(processes.device)).cpu()
    return [tuple(row) for row in summed.tolist()]


def precision_of(config: TrainConfig) -> str:
    """The precision of matrix products: bf16, tf32 or fp32."""
    if config.deepspeed.precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return config.deepspeed.precision


def _gpu_of(device: torch.device) -> Gpu | None:
    if device.type != "cuda":
        return None
    return Gpu.of_uuid(str(torch.cuda.get_device_properties(device).uuid))
