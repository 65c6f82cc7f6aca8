"""The ways of loader.py to read images that are stored as JPEG files of 224 px.

All read the same files and give shuffled batches [32, 3, 224, 224] of bytes. Peers decode in two
worker processes, with Pillow and with torchvision if it is installed. The JPEG store decodes in
threads.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader_files import JPEG_SAMPLES
from PIL import Image
from torch.utils.data import DataLoader

from furnace_hpc.config.manifest import Labels
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.loading.batches import BatchReader, HostBatch
from furnace_hpc.data.loading.prefetch import BatchPrefetcher, BatchRequest
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample, blank_sample

BATCH, WORKERS, SIZE = 32, 2, 224
PEERS = ("webdataset", "litdata", "hf datasets")
BLANK = blank_sample(
    8,
    ("image",),
    image=np.zeros((3, SIZE, SIZE), np.uint8),
    **{"label.class": np.zeros((), np.int16)},
)
Epoch = Callable[[], Iterator[int]]


@dataclass(frozen=True)
class Pictures:
    """Renders the images of an .npy file again and again."""

    path: Path

    def render(self, split: str, number: int) -> Sample:
        """Return a sample with one image."""
        images = _images(self.path)
        draft = Draft.begin(split, str(number), ("image",), BLANK)
        draft.add("image", str(number), lambda: {"image": images[number % len(images)]})
        return draft.finish()


@lru_cache(maxsize=1)
def _images(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def write_files(folder: Path, images: np.ndarray) -> dict[str, str]:
    """Write the JPEG store, and its files for each peer. Return the peers that are missing."""
    np.save(folder / "pictures.npy", images)
    plan = PackPlan(
        dataset="benchmark",
        modalities=("image",),
        labels={"class": Labels(kind="single_label", classes=("0", "1"))},
        rows={"train": range(JPEG_SAMPLES)},
        listed={"train": JPEG_SAMPLES},
        blank=BLANK,
        render=Pictures(folder / "pictures.npy").render,
        settings={},
    ).as_jpeg(SIZE)
    store = folder / "jpeg-store"
    pack_files(plan, store, lambda *_: None, workers=WORKERS, max_refused=0.0, force=False)
    content = (store / "train" / "image.jpeg").read_bytes()
    ends = np.load(store / "train" / "image_end.npy").tolist()
    files = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    missing = {}
    for peer, write in zip(PEERS, (_write_tars, _write_litdata, _write_arrow), strict=True):
        try:
            write(folder, files)
        except ImportError as error:
            missing[f"jpeg {peer}"] = f"cannot be imported: {error}"
    if find_spec("torchvision") is None:
        ways = [way for way in OPEN if way.endswith("torchvision")]
        missing |= dict.fromkeys(ways, "torchvision is not installed")
    return missing


def _write_tars(folder: Path, files: list[bytes]) -> None:
    import webdataset  # noqa: F401

    (folder / "jpeg-tars").mkdir()
    for number, content in enumerate(files):
        mode = "w" if number % 128 == 0 else "a"
        with tarfile.open(folder / "jpeg-tars" / f"{number // 128:03}.tar", mode) as tar:
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _write_litdata(folder: Path, files: list[bytes]) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder / "jpeg-litdata"), chunk_bytes="64MB")
    for number, content in enumerate(files):
        cache[number] = {"image": content}
    cache.done()
    cache.merge()


def _write_arrow(folder: Path, files: list[bytes]) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Value("large_binary")})
    made = datasets.Dataset.from_dict({"image": files}, features=features)
    made.save_to_disk(str(folder / "jpeg-arrow"))


def pillow(content: bytes) -> torch.Tensor:
    """Decode as most loaders do."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def torchvision(content: bytes) -> torch.Tensor:
    """Decode as litdata does."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


DECODERS = {"pillow": pillow, "torchvision": torchvision}


class BytesOnly(BatchReader):
    """Returns the stored values. A GPU would normalise them."""

    def to_device(self, host: HostBatch) -> Any:
        """Do nothing: no work is left for the host."""
        self.give_back(host)
        return host


def store(folder: Path) -> Epoch:
    """The way of the training loop: one thread reads ahead, and others decode."""
    columns = open_columns(folder / "jpeg-store")
    reader = BytesOnly(columns, "train", ("image",), ("class",), torch.device("cpu"))

    def epoch() -> Iterator[int]:
        order = torch.randperm(JPEG_SAMPLES).numpy()
        asked = [
            BatchRequest(order[first : first + BATCH]) for first in range(0, JPEG_SAMPLES, BATCH)
        ]
        with BatchPrefetcher(reader, asked) as batches:
            for batch in batches:
                yield len(batch.rows)

    return epoch


def webdataset(folder: Path, decoder: str) -> Epoch:
    """Shuffled shards, a shuffle buffer, and batches made by the workers."""
    import webdataset as wds

    shards = [str(path) for path in sorted((folder / "jpeg-tars").iterdir())]
    data = (
        wds.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(128)
        .to_tuple("jpg")
        .map_tuple(DECODERS[decoder])
        .batched(BATCH, collation_fn=_stacked)
    )
    loader = wds.WebLoader(data, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda: (len(batch) for batch in loader)


def _stacked(samples: list[tuple[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([image for (image,) in samples])


def litdata(folder: Path, decoder: str) -> Epoch:
    """The own loader of litdata over its own chunks, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoded(StreamingDataset):
        def __getitem__(self, index: Any) -> torch.Tensor:
            return DECODERS[decoder](super().__getitem__(index)["image"])

    loader = StreamingDataLoader(
        Decoded(str(folder / "jpeg-litdata"), shuffle=True),
        batch_size=BATCH,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return lambda: (len(batch) for batch in loader)


def arrow(folder: Path, decoder: str) -> Epoch:
    """Rows of `datasets` at random, decoded by the workers of PyTorch's loader."""
    import datasets

    def together(rows: list[dict[str, bytes]]) -> torch.Tensor:
        return torch.stack([DECODERS[decoder](row["image"]) for row in rows])

    loader = DataLoader(
        datasets.load_from_disk(str(folder / "jpeg-arrow")),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        collate_fn=together,
    )
    return lambda: (len(batch) for batch in loader)


_WAYS = {"webdataset": webdataset, "litdata": litdata, "hf datasets": arrow}
_FOLDERS = {"webdataset": "jpeg-tars", "litdata": "jpeg-litdata", "hf datasets": "jpeg-arrow"}
STORE = "jpeg store"
OPEN: dict[str, Callable[[Path], Epoch]] = {STORE: store} | {
    f"jpeg {peer}, {decoder}": partial(way, decoder=decoder)
    for peer, way in _WAYS.items()
    for decoder in DECODERS
}
FOLDER = {STORE: "jpeg-store"} | {
    f"jpeg {peer}, {decoder}": place for peer, place in _FOLDERS.items() for decoder in DECODERS
}
