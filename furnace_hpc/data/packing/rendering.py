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
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import JpegStore
from furnace_hpc.data.decode.reading import Watch, watch_this_process
from furnace_hpc.data.jpeg_images import decode_all, encode_all
from furnace_hpc.data.packing.rejects import Refusal
from furnace_hpc.data.packing.sample import RenderMany, Sample, Values
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
    render_many: RenderMany | None = None
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
    columns, at_once = _render_many(chunk, renderer)
    places = np.flatnonzero(at_once).tolist()
    kept, refusals = [], []
    for number in np.flatnonzero(~at_once).tolist():
        sample = _render_row(chunk, number, renderer, watch)
        refusals.append(sample.refusals)
        if sample.values is not None:
            kept.append(sample.values)
            places.append(number)
    watch.begin(-1, {})
    if kept:
        columns = _joined(columns, kept, places, renderer.blank)
    moments: dict[str, Moments] = {}
    jpeg = b""
    if places:
        sample_ids = np.sort(np.array(places, np.int32)) + np.int32(chunk.first_id)
        columns["sample_id"] = sample_ids.astype(np.int32)
        columns = {name: columns[name] for name in renderer.blank}
        is_train = chunk.split == "train"
        loaded = columns
        if renderer.jpeg:
            columns, loaded, jpeg = _as_jpeg(columns, renderer, renderer.jpeg, is_train)
        if is_train:
            moments = measure(loaded, renderer.modalities)
    lines = b"".join(refusal.line() for own in refusals for refusal in own)
    incomplete = sum(map(bool, refusals))
    return Rendered(chunk.split, len(chunk.rows), columns, lines, incomplete, moments, jpeg)


def _as_jpeg(
    columns: Values, renderer: Renderer, store: JpegStore, is_train: bool
) -> tuple[Values, Values, bytes]:
    """Return columns with the ends of JPEG files, those of a loader, and the files.

    The images of a loader are decoded only for the train split, which is measured.
    """
    present = columns["present"][:, renderer.modalities.index("image")]
    rest = {name: column for name, column in columns.items() if name != "image"}
    files, ends = encode_all(columns["image"], present, store)
    loaded = rest
    if is_train:
        loaded = rest | {"image": decode_all(files, ends, store)}
    return rest | {"image_end": ends}, loaded, b"".join(files)


def _render_many(chunk: Chunk, renderer: Renderer) -> tuple[Values, NDArray[np.bool_]]:
    """Return the columns of the rows that are rendered at once, and which rows these are."""
    if renderer.render_many is not None and not chunk.crashed:
        made = renderer.render_many(chunk.split, chunk.rows)
        if made is not None:
            return made
    return {}, np.zeros(len(chunk.rows), np.bool_)


def _render_row(chunk: Chunk, number: int, renderer: Renderer, watch: Watch) -> Sample:
    crashed = chunk.crashed.get(number, {})
    watch.begin(number, crashed)
    if "" not in crashed:
        return renderer.render(chunk.split, chunk.rows[number])
    cause = crashed[""]
    refusal = Refusal(chunk.split, chunk.named[number], None, "", "unreadable", cause, kept=False)
    return Sample(None, (refusal,))


def _joined(at_once: Values, kept: list[Values], places: list[int], blank: Values) -> Values:
    """Stack single samples behind the rows that were rendered at once, in the order of places."""
    columns = {
        name: np.stack([values[name] for values in kept]) for name in blank if name != "sample_id"
    }
    if not at_once:
        return columns
    order = np.argsort(places)
    return {
        name: np.concatenate([at_once[name], column])[order] for name, column in columns.items()
    }


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
