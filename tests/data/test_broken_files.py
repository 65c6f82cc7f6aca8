"""Of 2,000 files, 100 are broken in 40 ways. Exactly those are refused."""

import json
import shutil
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from broken_files import ENTRIES, IMAGES, NOISE, PLOTS, SOUNDS
from image_files import encoded, picture
from raw_sets import MIDS, NAMES, write_vocab

from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.packing.sample import PackPlan
from furnace_hpc.data.sets.audioset import ClipKnobs, Lists, plan_audioset
from furnace_hpc.data.sets.mmimdb import GENRES, MovieKnobs, plan_raw

MOVIES = [f"{number:07}" for number in range(600)]  # 1,200 files
CLIPS = [f"clip_{number:06}" for number in range(400)]  # 800 files
SIZE = ImageKnobs(size=32)


def write_movies(folder: Path, poster: bytes) -> PackPlan:
    (folder / "dataset").mkdir(parents=True)
    splits = {"train": MOVIES[:480], "dev": MOVIES[480:540], "test": MOVIES[540:]}
    (folder / "split.json").write_text(json.dumps(splits))
    for number, movie in enumerate(MOVIES):
        entry = {"plot": ["a letter in the cafe"], "genres": [GENRES[number % 23]]}
        (folder / "dataset" / f"{movie}.json").write_text(json.dumps(entry))
        (folder / "dataset" / f"{movie}.jpeg").write_bytes(poster)
    return plan_raw(folder, MovieKnobs(SIZE, str(write_vocab(folder / "vocab")), 16, "longest"))


def write_clips(folder: Path, frame: bytes) -> None:
    for name in ("audio", "frames/frame_0"):
        (folder / name).mkdir(parents=True)
    rows = "".join(
        f'{index},{mid},"{name}"\n'
        for index, (mid, name) in enumerate(zip(MIDS, NAMES, strict=True))
    )
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n" + rows)
    for name, clips in (
        ("balanced_train", CLIPS[:300]),
        ("val", CLIPS[300:350]),
        ("eval", CLIPS[350:]),
    ):
        lines = [f'{clip}, 0.000, 10.000, "{MIDS[CLIPS.index(clip) % 8]}"\n' for clip in clips]
        (folder / f"{name}_segments.csv").write_text("# a\n# b\n# c\n" + "".join(lines))
    soundfile.write(folder / "sound.wav", NOISE[:4000], 16_000)
    for clip in CLIPS:
        shutil.copy(folder / "sound.wav", folder / "audio" / f"{clip}.wav")
        (folder / "frames" / "frame_0" / f"{clip}.jpg").write_bytes(frame)


def plan_clips(folder: Path) -> PackPlan:
    lists = Lists("balanced_train_segments.csv", "val_segments.csv", "eval_segments.csv")
    knobs = ClipKnobs(SIZE, SoundKnobs(coefficients=8, frames=20), 1, 0.1, num_classes=8)
    return plan_audioset(folder, lists, folder / "audio", folder / "frames", knobs)


def packed(plan: PackPlan, out: Path) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Sample -> its present modalities, and the lines of refused.jsonl."""
    pack_files(plan, out, lambda *_: None, workers=2, max_refused=0.2, force=False)
    columns = open_columns(out, verify=True)
    present = {}
    for split in columns.manifest.splits:
        values = columns.split(split)
        present |= {
            name.decode(): row
            for name, row in zip(values["source_id"], values["present"], strict=True)
        }
    return present, [json.loads(line) for line in (out / "refused.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory) -> bytes:
    return encoded(picture(), "JPEG")


def test_broken_files_of_movies_are_refused(tmp_path, jpeg):
    """Of 1,200 files, 52 posters are broken in 26 ways, 6 plots in 3 and 12 entries in 6."""
    plan = write_movies(tmp_path / "raw", jpeg)
    dataset = tmp_path / "raw" / "dataset"
    broken = iter(MOVIES[3::8])
    posters, plots, entries = ([], [], [])
    for ways, taken, times, suffix in (
        (IMAGES, posters, 2, "jpeg"),
        (PLOTS, plots, 2, "json"),
        (ENTRIES, entries, 2, "json"),
    ):
        for (_, way), movie in zip(
            islice(cycle(ways.items()), times * len(ways)), broken, strict=False
        ):
            way(dataset / f"{movie}.{suffix}")
            taken.append(movie)
    assert (len(posters), len(plots), len(entries)) == (52, 6, 12)
    present, lines = packed(plan, tmp_path / "set")
    assert {(line["file"], line["modality"], line["kept"]) for line in lines} == {
        *((f"dataset/{movie}.jpeg", "image", True) for movie in posters),
        *((f"dataset/{movie}.json", "text", True) for movie in plots),
        *((f"dataset/{movie}.json", None, False) for movie in entries),
    }
    assert len(lines) == len(posters) + len(plots) + len(entries)
    assert present.keys() == set(MOVIES) - set(entries)
    for movie, (has_text, has_image) in present.items():
        assert (has_text, has_image) == (movie not in plots, movie not in posters), movie


def test_broken_files_of_clips_are_refused(tmp_path, jpeg):
    """Of 800 files, 20 sounds are broken in 5 ways and 10 frames in 10."""
    folder = tmp_path / "raw"
    write_clips(folder, jpeg)
    broken = iter(CLIPS[3::12])
    sounds = list(islice(broken, 20))
    frames = list(islice(broken, 10))
    for (_, way), clip in zip(cycle(SOUNDS.items()), sounds, strict=False):
        way(folder / "audio" / f"{clip}.wav")
    for (_, way), clip in zip(islice(IMAGES.items(), 10), frames, strict=True):
        way(folder / "frames" / "frame_0" / f"{clip}.jpg")
    present, lines = packed(plan_clips(folder), tmp_path / "set")
    assert {(line["file"], line["modality"], line["kept"]) for line in lines} == {
        *((f"audio/{clip}.wav", "audio", True) for clip in sounds),
        *((f"frame_0/{clip}.jpg", "image", True) for clip in frames),
    }
    assert present.keys() == set(CLIPS)
    for clip, (has_image, has_sound) in present.items():
        assert (has_image, has_sound) == (clip not in frames, clip not in sounds), clip
