"""A packed data set of clips with several frames."""

from pathlib import Path

import numpy as np

from furnace_hpc.config.manifest import Labels, Statistics
from furnace_hpc.data.columns import write_columns


def columns_of(seed: int, N: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    present = rng.random((N, 3)) > 0.4
    present[:, 1] |= ~present.any(1)
    return {
        "sample_id": np.arange(N, dtype=np.int32),
        "text": rng.integers(4, 20, (N, 6)).astype(np.int16),
        "text_length": np.full(N, 6, np.int16),
        "image": rng.integers(0, 255, (N, 1, 16, 16)).astype(np.uint8),
        "audio": rng.normal(size=(N, 40, 12)).astype(np.float16),
        "audio_length": np.full(N, 12, np.int16),
        "present": present.astype(np.uint8),
        "label.genre": (rng.random((N, 5)) > 0.6).astype(np.uint8),
    }


CLIP_FRAMES = 3


def write_clips(folder: Path) -> Path:
    """Clips of three frames with audio and two tasks. Some clips lack one modality."""
    splits = {}
    for seed, split in enumerate(("train", "val", "test")):
        rng, columns = np.random.default_rng(seed + 10), columns_of(seed)
        columns["image"] = rng.integers(0, 255, (40, CLIP_FRAMES, 1, 16, 16)).astype(np.uint8)
        columns["present"] = columns["present"][:, 1:] | ~columns["present"][:, 1:].any(
            1, keepdims=True
        )
        columns["label.digit"] = rng.integers(0, 4, 40).astype(np.int16)
        splits[split] = {
            name: column for name, column in columns.items() if not name.startswith("text")
        }
    manifest = write_columns(
        folder,
        splits=splits,
        dataset="clips",
        modalities=("image", "audio"),
        labels={
            "genre": Labels(kind="multi_label", classes=tuple("abcde")),
            "digit": Labels(kind="single_label", classes=tuple("0123")),
        },
        statistics={
            "image": Statistics(mean=(128,), std=(70,)),
            "audio": Statistics(mean=(0,) * 40, std=(1,) * 40),
        },
        vocab_size=None,
        preprocessing={},
    )
    of_clips = manifest.model_copy(update={"image_frames": CLIP_FRAMES})
    (folder / "manifest.json").write_text(of_clips.model_dump_json())
    return folder
