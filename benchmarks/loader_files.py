"""The samples of loader.py, as raw files for the article's loader and in every packed format."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
from PIL import Image, ImageFilter
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import Dataset

from furnace_hpc.config.manifest import Labels
from furnace_hpc.data.columns import write_columns
from furnace_hpc.data.decode.features import channel_statistics

SAMPLES = int(os.environ.get("SAMPLES", "1536"))  # a multiple of FILES
JPEG_SAMPLES = int(os.environ.get("JPEG_SAMPLES", str(SAMPLES)))  # of the ways of loader_jpeg.py
# Number of raw files. The packed formats do not compress, so they contain the samples 12 times.
FILES = 128
TOKENS, RATE, HOP, FRAMES = 128, 16_000, 160, 640
SAMPLE_BYTES = 3 * 224 * 224 + 40 * FRAMES * 2 + TOKENS * 2
FIELDS = ("image", "audio", "text")
Sample = dict[str, Any]


def make_files(folder: Path) -> None:
    """Write `files/<n>.jpg .wav .txt`.

    Pictures of 496 x 376 with structure and grain, and 6.4 s of noise at 16 kHz.
    """
    (folder / "files").mkdir()
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnopqrst"), 5)) for _ in range(2000)])
    for number in range(FILES):
        stem = folder / "files" / str(number)
        rough = Image.fromarray(rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)).resize(
            (496, 376), Image.BICUBIC
        )
        grain = rng.normal(0, 6, (376, 496, 1)).astype(np.float32)
        picture = np.clip(
            np.asarray(rough.filter(ImageFilter.GaussianBlur(2)), np.float32) + grain, 0, 255
        )
        Image.fromarray(picture.astype(np.uint8)).save(stem.with_suffix(".jpg"), quality=90)
        wave = rng.normal(0, 0.1, RATE * 64 // 10 - 1).astype(np.float32)
        soundfile.write(stem.with_suffix(".wav"), wave, RATE)
        stem.with_suffix(".txt").write_text(" ".join(rng.choice(words, int(rng.integers(60, 126)))))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words.tolist()))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))


class ArticleFiles(Dataset[Sample]):
    """Makes each sample when it is read: PIL, librosa, a tokenizer, and floats."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "files"
        self._tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"))
        self._tokenizer.enable_padding(length=TOKENS)
        self._tokenizer.enable_truncation(TOKENS)

    def __len__(self) -> int:
        return FILES

    def stored(self, number: int) -> Sample:
        """The sample with the values of the packed formats."""
        stem = self._folder / str(number)
        picture = Image.open(stem.with_suffix(".jpg")).convert("RGB").resize((224, 224))
        wave, _ = librosa.load(stem.with_suffix(".wav"), sr=RATE)
        coefficients = librosa.feature.mfcc(y=wave, sr=RATE, n_mfcc=40, hop_length=HOP)
        encoding = self._tokenizer.encode(stem.with_suffix(".txt").read_text())
        return {
            "image": np.asarray(picture, np.uint8).transpose(2, 0, 1),
            "audio": coefficients[:, :FRAMES].astype(np.float32),
            "text": np.array(encoding.ids, np.int16),
        }

    def __getitem__(self, number: int) -> Sample:
        sample = self.stored(number)
        image = (torch.from_numpy(sample["image"].copy()).float() / 255 - 0.45) / 0.22
        audio = (torch.from_numpy(sample["audio"]) + 10) / 60
        return {"image": image, "audio": audio, "text": torch.from_numpy(sample["text"]).long()}


def prepare(folder: Path) -> dict[str, str]:
    """Write the samples in every format. Return the peers that cannot be measured, and why."""
    files = ArticleFiles(folder)
    samples = [files.stored(number) for number in range(FILES)]
    columns = {
        name: np.stack([sample[name] for sample in samples] * (SAMPLES // FILES)) for name in FIELDS
    }
    columns["audio"] = columns["audio"].astype(np.float16)
    _pack(folder, columns)
    missing = {}
    for peer, write in (
        ("webdataset", _write_tars),
        ("litdata", _write_litdata),
        ("hf datasets", _write_arrow),
    ):
        try:
            write(folder, columns)
        except ImportError as error:
            missing[peer] = f"cannot be imported: {error}"
    import loader_jpeg  # it imports SAMPLES from here

    return missing | loader_jpeg.write_files(folder, columns["image"][:FILES])


def _pack(folder: Path, columns: dict[str, Any]) -> None:
    everything = columns | {
        "text_length": np.full(SAMPLES, TOKENS, np.int16),
        "present": np.ones((SAMPLES, 3), np.uint8),
        "label.class": np.zeros(SAMPLES, np.int16),
        "sample_id": np.arange(SAMPLES),
    }
    write_columns(
        folder / "packed",
        splits={"train": everything},
        dataset="benchmark",
        modalities=("text", "image", "audio"),
        labels={"class": Labels(kind="single_label", classes=("0", "1"))},
        statistics={name: channel_statistics(columns[name][:64]) for name in ("image", "audio")},
        vocab_size=3000,
        preprocessing={},
    )


def _write_tars(folder: Path, columns: dict[str, Any]) -> None:
    """Write shards of 128 samples. Raw bytes are decoded faster than npy members or pictures."""
    import webdataset  # noqa: F401

    (folder / "tars").mkdir()
    for number in range(SAMPLES):
        mode = "w" if number % 128 == 0 else "a"
        with tarfile.open(folder / "tars" / f"{number // 128:03}.tar", mode) as tar:
            for name in FIELDS:
                content = columns[name][number].tobytes()
                member = tarfile.TarInfo(f"{number}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _write_litdata(folder: Path, columns: dict[str, Any]) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder / "litdata"), chunk_bytes="64MB")
    for number in range(SAMPLES):
        cache[number] = {name: torch.from_numpy(columns[name][number].copy()) for name in FIELDS}
    cache.done()
    cache.merge()


def _write_arrow(folder: Path, columns: dict[str, Any]) -> None:
    import datasets

    raw = {name: [columns[name][number].tobytes() for number in range(SAMPLES)] for name in FIELDS}
    features = datasets.Features({name: datasets.Value("large_binary") for name in FIELDS})
    datasets.Dataset.from_dict(raw, features=features).save_to_disk(str(folder / "arrow-bytes"))
    arrays = {
        name: columns[name] if name != "audio" else columns[name].view(np.int16) for name in FIELDS
    }
    shaped = datasets.Features(
        {
            "image": datasets.Array3D((3, 224, 224), "uint8"),
            "audio": datasets.Array2D((40, FRAMES), "int16"),
            "text": datasets.Sequence(datasets.Value("int16"), length=TOKENS),
        }
    )
    datasets.Dataset.from_dict(
        {name: list(array) for name, array in arrays.items()}, features=shaped
    ).save_to_disk(str(folder / "arrow-arrays"))
