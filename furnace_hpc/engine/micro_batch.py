"""The micro-batch of `micro_batch_size: auto`, and half of it after a run is out of memory.

Auto tries the whole local batch first, then powers of two that divide it, the largest first. A try
is a training step of a throw-away engine over the longest texts. The first that fits is written to
`micro_batch.json`, once per run. Later attempts keep it, because another size would round
differently. On a CPU memory is not probed: auto is the whole local batch.
"""

import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.batch import AUTO
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.engine.deepspeed_engine import Engine
from furnace_hpc.engine.meters import memory_gib
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.weights.average import update_average
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.model.losses import total_loss
from furnace_hpc.runs.folder import RunFolder, write_json
from furnace_hpc.runs.records.verdict import RankVerdict, verdict_of

AGREE_S = 120.0  # a rank that waits longer for others is alone: they hang in a collective
MakeEngine = Callable[[TrainConfig], Engine]
Fits = Callable[[TrainConfig], bool]


def candidates(config: TrainConfig, world_size: int) -> list[int]:
    """Sizes that auto tries, largest first: the whole local batch, then powers of two.

    Raises:
        ConfigError: the global batch does not divide among the ranks.
    """
    local, rest = divmod(config.global_batch_size, world_size)
    if rest:
        raise ConfigError(
            f"global_batch_size {config.global_batch_size} does not divide among {world_size} "
            "processes. Choose a multiple of their number."
        )
    powers = [2**k for k in range(local.bit_length()) if local % 2**k == 0]
    return sorted({local, *powers}, reverse=True)


def half(config: TrainConfig, micro_batch_size: int) -> int | None:
    """Half of the micro-batch. None if it cannot be halved, or the numbers depend on it."""
    if config.needs_micro_batch or micro_batch_size % 2:
        return None
    return micro_batch_size // 2


def resolved(
    config: TrainConfig, folder: RunFolder, attempt: int, processes: Processes, fits: Fits
) -> TrainConfig:
    """Collective. The config with a number in the place of auto. Write the choice once.

    Raises:
        OutOfMemoryError: not even the smallest micro-batch fits.
    """
    if config.micro_batch_size != AUTO:
        return config
    sizes = candidates(config, processes.world_size)
    known = processes.broadcast(_read_choice(folder))
    if known is not None:  # the number of ranks may have changed since
        size = next((size for size in sizes if size <= known), sizes[-1])
        return config.model_copy(update={"micro_batch_size": size})
    size = _choose(config, sizes, fits)
    if processes.is_rank_zero:
        write_json(folder.micro_batch, {"micro_batch_size": size, "attempt": attempt})
    processes.print_once(f"micro_batch_size auto: {size} of {sizes}")
    return config.model_copy(update={"micro_batch_size": size})


def _choose(config: TrainConfig, sizes: list[int], fits: Fits) -> int:
    for size in sizes:
        if fits(config.model_copy(update={"micro_batch_size": size})):
            return size
    raise torch.OutOfMemoryError(
        f"micro_batch_size auto: not even {sizes[-1]} sample per process fits into memory. Use "
        "activation checkpointing, a higher ZeRO stage, or a smaller model."
    )


def _read_choice(folder: RunFolder) -> int | None:
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        size = json.loads(read_regular(folder.micro_batch))["micro_batch_size"]
        if isinstance(size, int) and size >= 1:
            return size
    return None


def probes_memory(device: torch.device) -> bool:
    """Whether sizes are really tried. On a CPU every size counts as fitting."""
    return device.type == "cuda"


def probe(make_engine: MakeEngine, reader: BatchReader, processes: Processes) -> Fits:
    """A function that tries a config.

    Args:
        make_engine: builds the network and its engine.
        reader: of the train split.
        processes: all of them try at once.
    """

    def fits(config: TrainConfig) -> bool:
        if not probes_memory(processes.device):
            return True
        is_out = _is_out_of_memory(make_engine, reader, config)
        gc.collect()
        if processes.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(processes.device)
        return not _any_rank(is_out, f"{config.micro_batch_size}", processes)

    return fits


def _is_out_of_memory(make_engine: MakeEngine, reader: BatchReader, config: TrainConfig) -> bool:
    """Whether two steps with a new engine run out of memory. The first one makes AdamW's state."""
    engine: Any = None
    try:
        engine = make_engine(config)
        batch = reader.read(longest_rows(reader, engine.train_micro_batch_size_per_gpu()))
        for _ in range(2 * engine.gradient_accumulation_steps()):
            _micro_step(engine, batch, config)
        update_average(engine, config, step=2)
        if reader.device.type == "cuda":
            torch.cuda.synchronize(reader.device)
        return False
    except Exception as error:
        if verdict_of(error) != "oom":
            raise
        return True
    finally:
        if engine is not None:
            engine.destroy()


def _micro_step(engine: Engine, batch: Batch, config: TrainConfig) -> None:
    output = engine(batch.inputs, batch.lengths, batch.present_BM)
    terms = total_loss(output, batch.labels, output["present"], config.loss, config.tasks)
    engine.backward(terms["loss"])
    engine.step()


def longest_rows(reader: BatchReader, count: int) -> Any:
    """Row numbers of the samples with the longest texts, of which memory depends."""
    order = np.arange(reader.num_samples)
    with suppress(KeyError):
        lengths = np.asarray(reader.column("text_length"), dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
    return np.resize(order, count)  # repeated if the split has fewer samples


def _any_rank(is_out: bool, name: str, processes: Processes) -> bool:
    """Collective. Whether any rank is out of memory.

    It uses the store, because ranks may hang in a collective that another one has left.

    Raises:
        OutOfMemoryError: only some ranks are out of memory, and the others do not answer.
    """
    if processes.world_size == 1:
        return is_out
    store = dist.distributed_c10d._get_default_store()
    key = f"furnace/micro-batch-{name}"
    store.add(f"{key}/out", int(is_out))
    store.add(f"{key}/seen", 1)
    deadline_s = time.monotonic() + AGREE_S
    while store.add(f"{key}/seen", 0) < processes.world_size:
        if time.monotonic() > deadline_s:
            raise torch.OutOfMemoryError(
                f"micro_batch_size auto: some ranks are out of memory at {name}, and others do "
                "not answer. Write a smaller number."
            )
        time.sleep(0.05)
    return store.add(f"{key}/out", 0) > 0


@contextmanager
def noted_oom(verdict: RankVerdict, device: torch.device) -> Iterator[None]:
    """Add allocated and reserved memory to the report of a rank that is out of memory."""
    try:
        yield
    except Exception as error:
        if verdict_of(error) == "oom":
            verdict.note_oom(describe_memory(device))
        raise


@contextmanager
def noted_half(verdict: RankVerdict, config: TrainConfig, engine: Engine) -> Iterator[None]:
    """Note the size for a retry if a training step runs out of memory."""
    try:
        yield
    except Exception as error:
        if verdict_of(error) == "oom":
            size = half(config, engine.train_micro_batch_size_per_gpu())
            if size is not None:
                verdict.note_oom(half_micro_batch_size=size)
        raise


def describe_memory(device: torch.device) -> str:
    """Memory of this rank in words: peaks, and what a GPU has."""
    allocated, reserved = memory_gib(device)
    if reserved is None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return f"peak {allocated:.2f} GiB resident of {total:.2f} GiB"
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"peak {allocated:.2f} GiB allocated, {reserved:.2f} GiB reserved of {total:.2f} GiB"
