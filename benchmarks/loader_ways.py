"""The ways to read samples that loader.py compares.

Each opens a folder and yields batches per epoch.
"""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import Any

import loader_jpeg
import numpy as np
import torch
from loader_files import FIELDS, FRAMES, SAMPLES, TOKENS, ArticleFiles, Sample
from torch.utils.data import DataLoader

from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader, HostBatch
from furnace_hpc.data.loading.prefetch import DEPTH, BatchPrefetcher, BatchRequest

BATCH, WORKERS = 32, 2
PEERS = ("webdataset", "litdata", "hf datasets")
Epoch = Callable[[], Iterator[int]]


def note() -> str:
    """The versions of the peers, and how it was measured, for the result."""
    return f"{versions()} Cold: the page cache is emptied of the files before each epoch."


def versions() -> str:
    """The versions of the peers."""
    found = []
    for package in ("webdataset", "litdata", "datasets", "pillow", "tokenizers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return f"Also: {', '.join(found)}. No GPU: memory is not pinned."


def article(folder: Path) -> Epoch:
    """The article's way: a map-style data set, two worker processes, floats."""
    data = DataLoader(
        ArticleFiles(folder), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    return lambda: (len(batch["image"]) for batch in data)


class BytesOnly(BatchReader):
    """Returns the stored values. A GPU would normalise them."""

    def to_device(self, host: HostBatch) -> Any:
        """Do nothing: no work is left for the host."""
        self.give_back(host)
        return host


def _reader(folder: Path, kind: type[BatchReader] = BatchReader) -> BatchReader:
    return kind(
        open_columns(folder / "packed"),
        "train",
        ("text", "image", "audio"),
        ("class",),
        torch.device("cpu"),
    )


def _requests() -> list[BatchRequest]:
    order = torch.randperm(SAMPLES).numpy()
    return [BatchRequest(order[first : first + BATCH]) for first in range(0, SAMPLES, BATCH)]


def packed(folder: Path, kind: type[BatchReader]) -> Epoch:
    """The way of the training loop: one thread reads ahead."""
    reader = _reader(folder, kind)

    def epoch() -> Iterator[int]:
        with BatchPrefetcher(reader, _requests()) as batches:
            for batch in batches:
                yield len(batch.rows)

    return epoch


def packed_no_thread(folder: Path) -> Epoch:
    """Gathering without a thread."""
    reader = _reader(folder)

    def epoch() -> Iterator[int]:
        for request in _requests():
            host = reader.gather(*request)
            reader.give_back(host)
            yield len(host.rows)

    return epoch


def memory_copy(folder: Path) -> Epoch:
    """Copy the same bytes from memory to memory, in stored order, to each of some places in turn.

    The prefetch thread has so many batches at a time. One place alone would stay in the cache.
    """
    train = open_columns(folder / "packed").split("train")
    sources = [np.array(train[name]) for name in FIELDS]
    targets = [[np.empty_like(source[:BATCH]) for source in sources] for _ in range(DEPTH + 1)]

    def epoch() -> Iterator[int]:
        for first, places in zip(range(0, SAMPLES, BATCH), cycle(targets), strict=False):
            for source, target in zip(sources, places, strict=True):
                np.copyto(target, source[first : first + BATCH])
            yield BATCH

    return epoch


SHAPES = {
    "image": ((3, 224, 224), np.uint8),
    "audio": ((40, FRAMES), np.float16),
    "text": ((TOKENS,), np.int16),
}


def _stack(name: str, raw: list[bytes]) -> torch.Tensor:
    shape, dtype = SHAPES[name]
    return torch.from_numpy(
        np.stack([np.frombuffer(content, dtype).reshape(shape) for content in raw])
    )


def webdataset(folder: Path, workers: int) -> Epoch:
    """Shuffled shards, a shuffle buffer, and batches made in the pipeline."""
    import webdataset as wds

    def together(samples: list[Sample]) -> Sample:
        return {name: _stack(name, [sample[name] for sample in samples]) for name in FIELDS}

    shards = [str(path) for path in sorted((folder / "tars").iterdir())]
    data = (
        wds.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(128)
        .batched(BATCH, collation_fn=together)
    )
    loader = wds.WebLoader(
        data, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: (len(batch["image"]) for batch in loader)


def litdata(folder: Path, workers: int) -> Epoch:
    """The own loader of litdata over its own chunks, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(str(folder / "litdata"), shuffle=True)
    loader = StreamingDataLoader(
        data,
        batch_size=BATCH,
        num_workers=workers,
        **({"persistent_workers": True} if workers else {}),
    )
    return lambda: (len(batch["image"]) for batch in loader)


def arrow_batches(folder: Path, kind: str) -> Epoch:
    """Batches from Arrow.

    `arrays` and `bytes` take rows at random. `chunks` shuffles shards and a buffer, without random
    access.
    """
    import datasets

    data = datasets.load_from_disk(
        str(folder / ("arrow-arrays" if kind == "arrays" else "arrow-bytes"))
    )

    def epoch() -> Iterator[int]:
        if kind == "chunks":
            stream = data.to_iterable_dataset(num_shards=12).shuffle(buffer_size=128)
            for batch in stream.iter(BATCH):
                yield len({name: _stack(name, batch[name]) for name in FIELDS}["image"])
            return
        shaped = data.with_format("numpy") if kind == "arrays" else data
        for request in _requests():
            batch = shaped[request.rows.tolist()]
            if kind == "bytes":
                batch = {name: _stack(name, batch[name]) for name in FIELDS}
            else:
                batch = {
                    name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in FIELDS
                }
            yield len(batch["image"])

    return epoch


OPEN: dict[str, Callable[[Path], Epoch]] = {
    "article": article,
    "packed bytes": lambda folder: packed(folder, BytesOnly),
    "packed bytes, no thread": packed_no_thread,
    "normalised floats": lambda folder: packed(folder, BatchReader),
    "memory copy": memory_copy,
    **{f"webdataset, {n} workers": lambda folder, n=n: webdataset(folder, n) for n in (0, 1, 2)},
    **{f"litdata, {n} workers": lambda folder, n=n: litdata(folder, n) for n in (0, 1, 2)},
    **{
        f"hf datasets, {kind}": lambda folder, kind=kind: arrow_batches(folder, kind)
        for kind in ("arrays", "bytes")
    },
    "hf datasets, chunks": lambda folder: arrow_batches(folder, "chunks"),
    **loader_jpeg.OPEN,
}

FOLDER = {way: "packed" for way in OPEN if way.startswith(("packed", "normalised"))} | {
    "article": "files",
    **{way: "tars" for way in OPEN if way.startswith("webdataset")},
    **{way: "litdata" for way in OPEN if way.startswith("litdata")},
    **{way: "arrow-bytes" for way in OPEN if way.startswith("hf datasets")},
    "hf datasets, arrays": "arrow-arrays",
    **loader_jpeg.FOLDER,
}

if __name__ == "__main__":  # loader.py runs this under strace: FOLDER WAY EPOCHS
    place, way, epochs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    opened = OPEN[way](place)
    for _ in range(epochs):
        sum(opened())
