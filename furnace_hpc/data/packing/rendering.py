"""The work of a packing process: render chunks of rows until the parent ends."""

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
from furnace_hpc.config.manifest import JpegStore
from furnace_hpc.data.decode.reading import Watch, watch_this_process
from furnace_hpc.data.jpeg_images import decode_all, encode_all
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
    """Row -> file -> why a process ended there. The file is "" outside of any file."""
    named: dict[int, str] = field(default_factory=dict)
    """Row at which a process ended -> name of its sample."""


@dataclass(frozen=True)
class Rendered:
    """A chunk of rows, rendered."""

    split: str
    num_rows: int
    columns: Values
    refused_lines: bytes
    incomplete: int
    moments: dict[str, Moments]
    jpeg: bytes = b""
    """Images as JPEG files, one after the other. `image_end` counts from the first one."""


@dataclass(frozen=True)
class Renderer:
    """The fields of `PackPlan` that a process needs."""

    render: Callable[[str, Any], Sample]
    blank: Values
    modalities: tuple[str, ...]
    jpeg: JpegStore | None = None


def work(pipe: Connection, watch: Watch, renderer: Renderer) -> None:
    """Render the chunks from the pipe. Send `Rendered`, or the error that ends the pack."""
    # Ctrl-C also reaches the parent, which ends this process.
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
                pipe.send(_fatal_error(error, chunk.split, watch))


def _render_chunk(chunk: Chunk, renderer: Renderer, watch: Watch) -> Rendered:
    samples = []
    for number, row in enumerate(chunk.rows):
        crashed = chunk.crashed.get(number, {})
        watch.begin(number, crashed)
        if "" in crashed:
            sample_name = chunk.named[number]
            refusal = Refusal(
                chunk.split, sample_name, None, "", "unreadable", crashed[""], kept=False
            )
            samples.append(Sample(None, (refusal,)))
        else:
            samples.append(renderer.render(chunk.split, row))
    watch.begin(-1, {})
    kept = []
    for sample_id, sample in enumerate(samples, start=chunk.first_id):
        if sample.values is not None:
            kept.append(sample.values | {"sample_id": np.int32(sample_id)})
    columns: Values = {}
    moments: dict[str, Moments] = {}
    jpeg = b""
    if kept:
        columns = {name: np.stack([values[name] for values in kept]) for name in renderer.blank}
        is_train = chunk.split == "train"
        loaded = columns
        if renderer.jpeg:
            present = columns["present"][:, renderer.modalities.index("image")]
            files, ends = encode_all(columns.pop("image"), present, renderer.jpeg)
            loaded, jpeg = columns, b"".join(files)
            if is_train:
                loaded = columns | {"image": decode_all(files, ends, renderer.jpeg)}
            columns["image_end"] = ends
        if is_train:
            moments = measure(loaded, renderer.modalities)
    lines = b"".join(refusal.line() for sample in samples for refusal in sample.refusals)
    incomplete = sum(bool(sample.refusals) for sample in samples)
    return Rendered(chunk.split, len(chunk.rows), columns, lines, incomplete, moments, jpeg)


def _fatal_error(error: Exception, split: str, watch: Watch) -> Exception:
    """Add the sample's name to an error of the input, the machine or the program."""
    if isinstance(error, ConfigError):
        return error
    where = f"{split}: samples"
    if watch.at.sample:
        where = f"{split}: sample {watch.at.sample!r}"
    if isinstance(error, MemoryError):
        return ConfigError(
            f"{where}: memory is full. Run the same command with fewer --workers; the pack resumes."
        )
    if isinstance(error, OSError):
        problem = error.strerror or str(error)
        return ConfigError(
            f"{where}: {problem}. Fix it and run the same command; the pack resumes."
        )
    return RuntimeError(
        f"{where} cannot be rendered:\n{''.join(traceback.format_exception(error))}"
    )
