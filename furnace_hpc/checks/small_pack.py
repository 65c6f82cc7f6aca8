"""A few real samples of each split of a pack, as a pack of its own."""

from pathlib import Path

import numpy as np

from furnace_hpc.data.columns import Columns, open_columns, write_columns
from furnace_hpc.host.durable_files import write_durably

NUM_SAMPLES = 12  # of each split


def cut_pack(source: Path, target: Path, num_samples: int = NUM_SAMPLES) -> Columns:
    """Write samples of each split, evenly spaced, to a new pack. Statistics are those of `source`.

    Raises:
        ConfigError: the pack is damaged, or the new one cannot be written.
    """
    columns = open_columns(source)
    manifest = columns.manifest
    splits = {}
    for split, size in manifest.splits.items():
        rows = np.unique(np.linspace(0, size - 1, min(size, num_samples)).astype(np.int64))
        splits[str(split)] = {
            name: np.asarray(array[rows]) for name, array in columns.split(split).items()
        }
    small = write_columns(
        target,
        splits=splits,
        dataset=manifest.dataset,
        modalities=manifest.modalities,
        labels=manifest.labels,
        statistics=manifest.statistics,
        vocab_size=manifest.vocab_size,
        preprocessing=manifest.preprocessing,
    )
    kept = {"pad_id": manifest.pad_id, "image_frames": manifest.image_frames}
    small = small.model_copy(update=kept)
    write_durably(target / "manifest.json", small.model_dump_json(indent=1).encode())
    return open_columns(target)
