"""What a process of a pack does: it renders chunks of rows until its parent is gone."""

import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.decode.reading import Watch, watch_this_process
from furnace_hpc.data.packing.rejects import Refusal
from furnace_hpc.data.packing.sample import Sample, Values
from furnace_hpc.data.packing.statistics import Moments, measure


@dataclass(frozen=True)
class Chunk:
    """Rows that are rendered together."""

    split: str
    first_id: int
    rows: Sequence[Any]
    crashed: dict[int, dict[str, str]] = field(default_factory=dict)
    """Row -> file -> how it ended a process. No file: the row ended it outside of any file."""
    named: dict[int, str] = field(default_factory=dict)
    """Row that ended a process outside of any file -> name of its sample."""


@dataclass(frozen=True)
class Rendered:
    """A chunk of rows, rendered."""

    split: str
    num_rows: int
    columns: Values
    refused_lines: bytes
    incomplete: int
    moments: dict[str, Moments]


@dataclass(frozen=True)
class Renderer:
    """What a process needs for all chunks; as in `PackPlan`."""

    render: Callable[[str, Any], Sample]
    blank: Values
    modalities: tuple[str, ...]


def work(pipe: Connection, watch: Watch, renderer: Renderer) -> None:
    """Render the chunks that come through the pipe, in order; send `Rendered`, or the error that ends the pack."""
    # Ctrl-C reaches the parent too, and it ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    watch_this_process(watch)
    chunks: queue.SimpleQueue[Chunk] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                chunks.put(pipe.recv())
        except (EOFError, OSError):  # the parent has ended
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    with threadpool_limits(1):
        while True:
            chunk = chunks.get()
            try:
                pipe.send(_render_chunk(chunk, renderer, watch))
            except BrokenPipeError:
                os._exit(1)
            except Exception as error:
                pipe.send(_told(error, chunk.split, watch))


def _render_chunk(chunk: Chunk, renderer: Renderer, watch: Watch) -> Rendered:
    samples = []
    for number, row in enumerate(chunk.rows):
        crashed = chunk.crashed.get(number, {})
        watch.begin(number, crashed)
        if "" in crashed:
            name = chunk.named[number]
            samples.append(
                Sample(
                    None, (Refusal(chunk.split, name, None, "", "unreadable", crashed[""], False),)
                )
            )
        else:
            samples.append(renderer.render(chunk.split, row))
    watch.begin(-1, {})
    kept = []
    for sample_id, sample in enumerate(samples, start=chunk.first_id):
        if sample.values is not None:
            kept.append(sample.values | {"sample_id": np.int32(sample_id)})
    columns = {
        name: np.stack([values[name] for values in kept])
        for name in (renderer.blank if kept else ())
    }
    lines = b"".join(refusal.line() for sample in samples for refusal in sample.refusals)
    incomplete = sum(bool(sample.refusals) for sample in samples)
    moments = measure(columns, renderer.modalities) if chunk.split == "train" and kept else {}
    return Rendered(chunk.split, len(chunk.rows), columns, lines, incomplete, moments)


def _told(error: Exception, split: str, watch: Watch) -> Exception:
    """An error that ends the pack, with the sample's name: of the input, of this machine, or of this program."""
    if isinstance(error, ConfigError):
        return error
    where = f"{split}: sample {watch.at.sample!r}" if watch.at.sample else f"{split}: samples"
    if isinstance(error, MemoryError):
        return ConfigError(
            f"{where}: memory is full. Give the same command with fewer --workers; the pack resumes."
        )
    if isinstance(error, OSError):
        problem = error.strerror or str(error)
        return ConfigError(
            f"{where}: {problem}. Fix it and give the same command; the pack resumes."
        )
    return RuntimeError(
        f"{where} cannot be rendered:\n{''.join(traceback.format_exception(error))}"
    )
