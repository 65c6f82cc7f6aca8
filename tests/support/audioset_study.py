"""Lists and settings of the small AudioSet in tests."""

from raw_sets import (
    MIDS,
)

from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.sets.audioset import ClipKnobs, Lists

CSV = Lists("balanced_train_segments.csv", None, "eval_segments.csv")


JSON = Lists("balanced_train_segments.json", None, "eval_segments.json")


KNOBS = ClipKnobs(ImageKnobs(size=16), SoundKnobs(hop=256, frames=80), 10, 0.2, len(MIDS))
