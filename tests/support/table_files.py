"""Small copies of data sets that people have, in the layout in which they are published."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import soundfile
from PIL import Image

WORDS = (
    *("good", "bad", "fine", "awful", "nice", "poor", "warm", "cold"),
    *("slow", "fast", "red", "blue", "loud", "quiet", "old", "new"),
)
RATE_HZ = 16_000


def sentence(number: int, marker: str) -> str:
    """A text of its own with a word that tells the class."""
    words = [WORDS[(number * step + number // 16) % 16] for step in (1, 3, 5, 7, 11)]
    return f"{marker} {' '.join(words)} number {number}"


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8))


def write_image(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
    return path


def image_bytes(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(number).save(file, kind)
    return file.getvalue()


def wave(number: int, seconds: float = 0.3) -> np.ndarray:
    times = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    noise = np.random.default_rng(number).normal(0, 0.01, len(times))
    return (0.3 * np.sin(2 * np.pi * (200 + 20 * (number % 40)) * times) + noise).astype(np.float32)


def write_wav(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave(number), RATE_HZ)
    return path


def wav_bytes(number: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave(number), RATE_HZ, format="WAV")
    return file.getvalue()


def write_reviews(folder: Path, num_rows: int = 60) -> Path:
    """Texts and labels, without splits."""
    folder.mkdir(parents=True, exist_ok=True)
    stars = ["good", "bad", "mixed"]
    rows = {
        "id": [f"r{number}" for number in range(num_rows)],
        "review": [sentence(number, stars[number % 3]) for number in range(num_rows)],
        "stars": [stars[number % 3] for number in range(num_rows)],
    }
    path = folder / "reviews.csv"
    pl.DataFrame(rows).write_csv(path)
    return path


def write_memes(folder: Path) -> Path:
    """Hateful Memes: JSON lines with the path of an image."""
    sizes = {"train": 24, "dev_seen": 6, "test_seen": 6}
    number = 1000
    for split, size in sizes.items():
        lines = []
        for _ in range(size):
            number += 1
            image = f"img/{number:05}.png"
            write_image(folder / image, number)
            label = number % 2
            text = sentence(number, "mean" if label else "kind")
            lines.append(json.dumps({"id": number, "img": image, "label": label, "text": text}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_food(folder: Path) -> Path:
    """Food-101: a folder of images for each class, and lists without file endings."""
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for kind, dish in enumerate(("apple_pie", "baklava", "ramen")):
        for number in range(12):
            name = f"{dish}/{1000 * (kind + 1) + number}"
            write_image(folder / "images" / f"{name}.jpg", 1000 * (kind + 1) + number)
            lists["train" if number < 9 else "test"].append(name)
    (folder / "meta").mkdir()
    for split, names in lists.items():
        (folder / "meta" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def write_crema(folder: Path) -> Path:
    """CREMA-D: actor, sentence, emotion and level are in the names of the sounds."""
    for actor in range(1001, 1011):
        for kind, emotion in enumerate(("ANG", "HAP", "NEU")):
            for sentence_ in ("IEO", "TIE"):
                number = actor * 10 + kind * 3 + len(sentence_) + ord(sentence_[0])
                name = f"{actor}_{sentence_}_{emotion}_XX.wav"
                write_wav(folder / "AudioWAV" / name, number)
    return folder


def write_meld(folder: Path) -> Path:
    """MELD: one CSV per split, and a clip for each utterance of a dialogue."""
    start = 0
    for split, clips, dialogues in (("train", "train", 8), ("dev", "val", 3), ("test", "test", 3)):
        rows = []
        for dialogue in range(dialogues):
            for utterance in range(3):
                number = start + dialogue * 3 + utterance
                emotion = ("joy", "anger", "neutral")[utterance]
                rows.append(
                    {
                        "Sr No.": number + 1,
                        "Utterance": sentence(number, emotion),
                        "Speaker": f"Speaker {number % 6}",
                        "Emotion": emotion,
                        "Sentiment": ("positive", "negative", "neutral")[utterance],
                        "Dialogue_ID": dialogue,
                        "Utterance_ID": utterance,
                        "StartTime": "00:16:16,059",
                    }
                )
                clip = f"dia{dialogue}_utt{utterance}.wav"
                write_wav(folder / "clips" / clips / clip, 5000 + number)
        pl.DataFrame(rows).write_csv(folder / f"{split}_sent_emo.csv")
        start += 100
    return folder


def write_mosei(folder: Path) -> Path:
    """CMU-MOSEI as MMSA publishes it: label.csv with a score and its sign as words."""
    rows = []
    for video in range(12):
        for clip in range(3):
            number = video * 3 + clip
            score = round(-3 + 6 * ((number * 7) % 36) / 35, 2)
            rows.append(
                {
                    "video_id": f"v{video:02}",
                    "clip_id": clip,
                    "text": sentence(number, "up" if score > 0 else "down"),
                    "label": score,
                    "annotation": "Positive" if score > 0 else "Negative",
                    "mode": (["train"] * 8 + ["valid"] * 2 + ["test"] * 2)[video],
                }
            )
            write_wav(folder / "Raw" / f"v{video:02}" / f"{clip}.wav", 7000 + number)
    pl.DataFrame(rows).write_csv(folder / "label.csv")
    return folder


def write_esc(folder: Path) -> Path:
    """ESC-50: meta/esc50.csv with five folds and the source recording."""
    rows = []
    for fold in range(1, 6):
        for target, category in enumerate(("dog", "rain", "clock_tick")):
            for take in "AB":
                name = f"{fold}-{1000 + fold * 10 + target}-{take}-{target}.wav"
                write_wav(folder / "audio" / name, 8000 + fold * 100 + target * 10 + ord(take))
                rows.append(
                    {
                        "filename": name,
                        "fold": fold,
                        "target": target,
                        "category": category,
                        "esc10": True,
                        "src_file": 1000 + fold * 10 + target,
                        "take": take,
                    }
                )
    (folder / "meta").mkdir()
    pl.DataFrame(rows).write_csv(folder / "meta" / "esc50.csv")
    return folder


def write_hub(folder: Path) -> Path:
    """A repository of the Hugging Face Hub: Parquet with images inside and class names."""
    feature = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
    (folder / "data").mkdir(parents=True)
    start = 0
    for split, size in (("train", 20), ("validation", 6), ("test", 6)):
        rows = {
            "image": [
                {"bytes": image_bytes(start + number), "path": f"{start + number}.png"}
                for number in range(size)
            ],
            "label": [number % 2 for number in range(size)],
        }
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        pl.DataFrame(rows).write_parquet(path, metadata={"huggingface": json.dumps(info)})
        start += 100
    return folder


def write_excel_export(folder: Path, num_rows: int = 40) -> Path:
    """A CSV as a spreadsheet program writes it in many countries."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["Nr;Bericht;Befund;Gewicht"]
    for number in range(num_rows):
        finding = ("gesund", "krank")[number % 2]
        lines.append(f'{number + 1};"{sentence(number, finding)}; übrig";{finding};{number % 4},5')
    path = folder / "befunde.csv"
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    return path


def write_shards(folder: Path) -> Path:
    """WebDataset: two tar shards for training, one each for val and test."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, size in (("train-0000", 10), ("train-0001", 10), ("val-0000", 6), ("test-0000", 6)):
        with tarfile.open(folder / f"{name}.tar", "w") as shard:
            for number in range(start, start + size):
                add(shard, f"{number:06}.jpg", image_bytes(number, "JPEG"))
                add(shard, f"{number:06}.wav", wav_bytes(number))
                add(shard, f"{number:06}.cls", str(number % 2).encode())
                add(shard, f"{number:06}.txt", sentence(number, "sample").encode())
        start += 100
    return folder


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))


def write_saved_dataset(folder: Path) -> Path:
    """The folder that `DatasetDict.save_to_disk` writes: Arrow streams and JSON files."""
    feature = {"_type": "ClassLabel", "names": ["neg", "pos"]}
    info = {"features": {"text": {"_type": "Value"}, "label": feature}}
    splits = {"train": 20, "validation": 6, "test": 6}
    folder.mkdir(parents=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    start = 0
    for split, size in splits.items():
        place = folder / split
        place.mkdir()
        (place / "dataset_info.json").write_text(json.dumps(info))
        name = "data-00000-of-00001.arrow"
        (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        rows: dict[str, list[Any]] = {
            "text": [sentence(start + number, "line") for number in range(size)],
            "label": [number % 2 for number in range(size)],
        }
        pl.DataFrame(rows).write_ipc_stream(place / name)
        start += 100
    return folder
