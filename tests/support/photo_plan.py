"""A small set of pictures that is packed as JPEG. Packing processes import it, so it is light."""

import numpy as np
from PIL import Image

from furnace_hpc.config.manifest import Labels
from furnace_hpc.data.packing.sample import Draft, PackPlan, Sample, blank_sample

SPLITS = {"train": range(40), "val": range(40, 52), "test": range(52, 60)}


def photo(number: int, size: int = 32) -> np.ndarray:
    """A smooth picture [3, size, size], as photographs are."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def render(split: str, number: int) -> Sample:
    draft = Draft.begin(split, f"s{number}", ("text", "image"), BLANK)
    draft.add("text", "", lambda: {"text": np.full(4, number % 9, np.int16)})
    if number % 7:  # the others have no image
        draft.add("image", "", lambda: {"image": photo(number)})
    draft.label("odd", np.array(number % 2))
    return draft.finish()


BLANK = blank_sample(
    8,
    ("text", "image"),
    text=np.zeros(4, np.int16),
    image=np.zeros((3, 32, 32), np.uint8),
    **{"label.odd": np.zeros((), np.int16)},
)


def plan(size: int = 28) -> PackPlan:
    rows = {split: list(numbers) for split, numbers in SPLITS.items()}
    made = PackPlan(
        dataset="photos",
        modalities=("text", "image"),
        labels={"odd": Labels(kind="single_label", classes=("no", "yes"))},
        rows=rows,
        listed={split: len(numbers) for split, numbers in rows.items()},
        blank=BLANK,
        render=render,
        settings={"recipe": 1},
        vocab_size=9,
        chunk_rows=8,
    )
    return made.as_jpeg(size)
