"""The published forms of the public data sets, a few samples each, odd files among them."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import soundfile
from PIL import Image

from furnace_hpc.data.sets.mmimdb import GENRES

VOCAB = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    "a", "the", "detective", "finds", "letter", "in", "1999", "love", "cafe", ".", ",", "##s",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), *"bcdefghijklmnopqrstuvwxyz",
]  # fmt: skip
SPLIT = {
    "train": [f"00000{n:02}" for n in range(1, 7)],
    "dev": ["0000011", "0000012"],
    "test": [f"01067{n}" for n in range(14, 18)],
}
MOVIES = [movie for ids in SPLIT.values() for movie in ids]


def write_vocab(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return folder


def marked(marker: int, width: int = 40, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A picture of one colour that tells the marker."""
    return Image.new("L", (width, height), 10 * marker + 10).convert(mode)


def marker_of(image: np.ndarray) -> int:
    return round((float(image.mean()) - 10) / 10)


# --- MM-IMDb ---


def genres_of(number: int) -> list[str]:
    return [GENRES[number % 23], GENRES[(3 * number + 1) % 23]]


def write_mmimdb(folder: Path) -> Path:
    """12 movies. Poster, plot (n letters "b") and genres of movie n show n."""
    (folder / "dataset").mkdir(parents=True)
    (folder / "split.json").write_text(json.dumps(SPLIT))
    for number, movie in enumerate(MOVIES):
        entry: dict[str, Any] = {
            "plot": ["a letter " + "b " * number, "love"],
            "plot outline": "the cafe",
            "genres": genres_of(number),
            "title": f"Movie {number}",
            "long imdb title": f"Movie {number} (1999)",
        }
        mode = {1: "L", 2: "CMYK"}.get(number, "RGB")
        if number == 3:
            entry["plot"] = ["love .", "the detective finds a letter in 1999 .", "a b b b"]
            del entry["plot outline"]
        if number == 4:
            entry["genres"].append("News")
        if number == 5:
            entry |= {"plot": ["Détective, 東京, a b b b b b"], "title": "Zażółć"}
        (folder / "dataset" / f"{movie}.json").write_text(json.dumps(entry), encoding="utf-8")
        marked(number, 61 + number, 97 - number, mode).save(
            folder / "dataset" / f"{movie}.jpeg", quality=95
        )
    return folder


def write_mmimdb_hdf5(folder: Path, *, fuel: bool = True, metadata: str = "npy") -> Path:
    """The same movies as `multimodal_imdb.hdf5`, with Fuel's split array or `split.json`."""
    folder.mkdir(parents=True)
    num_rows, words = len(MOVIES), {0: "_UNK_", 1: "_EOS_", 2: "a", 3: "letter", 4: "b"}
    with h5py.File(folder / "multimodal_imdb.hdf5", "w") as file:
        file["imdb_ids"] = np.array([movie.encode() for movie in MOVIES], "S7")
        images = np.stack([np.full((3, 256, 160), 10 * n + 10, np.int32) for n in range(num_rows)])
        file["images"] = images
        genres = np.zeros((num_rows, 23), np.int32)
        for number in range(num_rows):
            genres[number, [GENRES.index(name) for name in genres_of(number)]] = 1
        file["genres"] = genres
        file["genres"].attrs["target_names"] = json.dumps(GENRES)
        sequences = file.create_dataset("sequences", (num_rows,), h5py.vlen_dtype(np.int32))
        for number in range(num_rows):
            sequences[number] = [2, 3, *[4] * number, 1]
        for name, width in (
            ("features", 300),
            ("vgg_features", 4096),
            ("three_grams", 5),
            ("word_grams", 5),
        ):
            file[name] = np.zeros((num_rows, width), np.float32)
        if fuel:
            file.attrs["split"] = fuel_split(file)
        else:
            (folder / "split.json").write_text(json.dumps(SPLIT))
    content = {
        "ix_to_word": words,
        "word_to_ix": {w: i for i, w in words.items()},
        "vocab_size": len(words),
    }
    if metadata == "npy":
        np.save(folder / "metadata.npy", np.array(content, dtype=object), allow_pickle=True)
    if metadata == "json":
        (folder / "metadata.json").write_text(json.dumps(content))
    return folder


def fuel_split(file: h5py.File) -> np.ndarray:
    """What Fuel's H5PYDataset.create_split_array makes."""
    dtype = np.dtype(
        [
            ("split", "S5"),
            ("source", "S12"),
            ("start", np.int64),
            ("stop", np.int64),
            ("indices", h5py.special_dtype(ref=h5py.Reference)),
            ("available", np.bool_),
            ("comment", "S1"),
        ]
    )
    rows, start = [], 0
    for name, ids in SPLIT.items():
        for source in ("features", "genres", "images"):
            rows.append(
                (
                    name.encode(),
                    source.encode(),
                    start,
                    start + len(ids),
                    h5py.Reference(),
                    True,
                    b".",
                )
            )
        start += len(ids)
    return np.array(rows, dtype=dtype)


# --- AV-MNIST ---


def write_avmnist(
    folder: Path, dtype: type = np.uint8, images: str = "image", train: int = 60, test: int = 20
) -> Path:
    """The first pixel and the first bin of the spectrogram of each row show its digit."""
    for name in (images, "audio"):
        (folder / name).mkdir(parents=True)
    for part, num_rows in (("train", train), ("test", test)):
        rng = np.random.default_rng(num_rows)
        labels = (np.arange(num_rows) * 7 % 10).astype(np.uint8)
        image = rng.uniform(-30 if dtype != np.uint8 else 0, 200, (num_rows, 784)).astype(dtype)
        audio = rng.uniform(0, 255, (num_rows, 112, 112)).astype(dtype)
        image[:, 0] = audio[:, 0, 0] = labels * 10
        np.save(folder / images / f"{part}_data.npy", image)
        np.save(folder / "audio" / f"{part}_data.npy", audio)
        np.save(folder / f"{part}_labels.npy", labels)
    return folder


# --- AudioSet ---

MIDS = [f"/m/0{letter}" for letter in "abcdef"] + ["/t/dd00018", "/m/09x0r"]
NAMES = [
    "Speech", "Male speech, man speaking", "Dog", "Cat", "Music", "Bell", "Silence", "Engine",
]  # fmt: skip
CLIPS = [
    "--aE2O5G5WE",
    "-0RWZT-miFs",
    "_x9Kq2ab_cD",
    *(f"Clip_{n:06}" for n in range(3, 15)),
    "cLIP_000003",
]
NUM_TRAIN = 12
STEREO, FAST, SILENT, EIGHT_BIT, TRUNCATED, FEW_FRAMES, NO_SOUND, GONE = 1, 2, 3, 4, 5, 6, 7, 8


def labels_of(number: int) -> list[str]:
    return [MIDS[number % 8], MIDS[(3 * number + 1) % 8]]


def write_audioset(folder: Path) -> Path:
    """16 clips of a second: CSVs, CAV-MAE's JSON, sounds and frames. Frames of clip n show n."""
    (folder / "audio").mkdir(parents=True)
    for frame in range(10):
        (folder / "frames" / f"frame_{frame}").mkdir(parents=True)
    _write_classes(folder)
    parts = {
        "balanced_train_segments": CLIPS[:NUM_TRAIN],
        "eval_segments": CLIPS[NUM_TRAIN:],
        "unbalanced_train_segments": [],
    }
    for name, clips in parts.items():
        _write_segments(folder / f"{name}.csv", clips)
        entries = [
            {
                "video_id": clip,
                "wav": f"/another/machine/{clip}.flac",
                "video_path": "/another/machine/frames",
                "labels": ",".join(labels_of(CLIPS.index(clip))),
            }
            for clip in clips
        ]
        (folder / f"{name}.json").write_text(json.dumps({"data": entries}))
    for number, clip in enumerate(CLIPS):
        if number == GONE:
            continue
        if number != NO_SOUND:
            _write_sound(folder / "audio", number, clip)
        for frame in range(7 if number == FEW_FRAMES else 10):
            marked(number, 32, 32).save(
                folder / "frames" / f"frame_{frame}" / f"{clip}.jpg", quality=95
            )
    return folder


def _write_classes(folder: Path) -> None:
    with (folder / "class_labels_indices.csv").open("w", newline="") as file:
        file.write("index,mid,display_name\n")
        for index, (mid, name) in enumerate(zip(MIDS, NAMES, strict=True)):
            file.write(f'{index},{mid},"{name}"\n')
    nodes = [
        {"id": mid, "name": name, "child_ids": [], "restrictions": []}
        for mid, name in zip(MIDS, NAMES, strict=True)
    ]
    (folder / "ontology.json").write_text(
        json.dumps([*nodes, {"id": "/m/root", "name": "Root", "child_ids": MIDS}])
    )


def _write_segments(path: Path, clips: list[str]) -> None:
    lines = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        f"# num_ytids={len(clips)}, num_segs={len(clips)}, num_unique_labels=8, "
        f"num_positive_labels={2 * len(clips)}",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    for clip in clips:
        lines.append(f'{clip}, 30.000, 40.000, "{",".join(labels_of(CLIPS.index(clip)))}"')
    path.write_text("\n".join(lines) + "\n")


def tone(number: int, rate: int, seconds: float = 1.0) -> np.ndarray:
    """A tone whose pitch tells the clip."""
    return 0.4 * np.sin(2 * np.pi * (300 + 150 * number) * np.arange(round(rate * seconds)) / rate)


def _write_sound(folder: Path, number: int, clip: str) -> None:
    rate = 44_100 if number == FAST else 16_000
    wave = tone(number, rate)
    if number == SILENT:
        wave = np.zeros_like(wave)
    if number == STEREO:
        wave = np.stack([wave, wave], axis=1)
    suffix = "flac" if number == 9 else "wav"
    subtype = "PCM_U8" if number == EIGHT_BIT else "PCM_16"
    soundfile.write(folder / f"{clip}.{suffix}", wave, rate, subtype=subtype)
    if number == TRUNCATED:
        path = folder / f"{clip}.wav"
        path.write_bytes(path.read_bytes()[:9000])
