"""The cases of compare.py that measure a part of a process: python compare_work.py CASE FOLDER.

They write wall and CPU seconds into `times.json` of the folder. Only this file imports Furnace's
modules. A tree without one of them does not have the case.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

SAMPLES, BATCH, EPOCHS = 256, 32, 20
MEGABYTES, SAVES = 100, 5


def loader_pass(folder: Path) -> Callable[[], None]:
    """Read all samples of a pack some times, from memory and in random order."""
    from furnace_hpc.config.manifest import Labels
    from furnace_hpc.data.columns import open_columns, write_columns
    from furnace_hpc.data.loading.batches import BatchReader
    from furnace_hpc.data.loading.prefetch import BatchPrefetcher, BatchRequest

    rng, pack = np.random.default_rng(0), folder / "loaded"
    columns = {
        "image": rng.integers(0, 256, (SAMPLES, 3, 224, 224), dtype=np.uint8),
        "present": np.ones((SAMPLES, 1), np.uint8),
        "label.class": np.zeros(SAMPLES, np.int16),
        "sample_id": np.arange(SAMPLES),
    }
    if not pack.exists():
        write_columns(
            pack,
            splits={"train": columns},
            dataset="benchmark",
            modalities=("image",),
            labels={"class": Labels(kind="single_label", classes=("0", "1"))},
            statistics={"image": {"mean": (127.0,) * 3, "std": (74.0,) * 3}},
            vocab_size=0,
            preprocessing={},
        )
    reader = BatchReader(open_columns(pack), "train", ("image",), ("class",), torch.device("cpu"))
    order = rng.permutation(SAMPLES)
    requests = [BatchRequest(order[first : first + BATCH]) for first in range(0, SAMPLES, BATCH)]

    def epoch() -> None:
        with BatchPrefetcher(reader, requests) as batches:
            for _ in batches:
                pass

    epoch()  # so that everything is in memory
    return lambda: [epoch() for _ in range(EPOCHS)] and None


def save(folder: Path) -> Callable[[], None]:
    """Write and sync the files of a checkpoint of 100 MB, some times."""
    from furnace_hpc.engine.checkpoint.tensor_files import write_files

    state = {f"tensor{n}": torch.rand(MEGABYTES // 10, 250_000) for n in range(10)}

    def write() -> None:
        for number in range(SAVES):
            write_files({"state.pt": state}, folder / "saved" / str(number))
        shutil.rmtree(folder / "saved")

    return write


CASES = {"loader pass": loader_pass, "save of 100 MB": save}


def main() -> None:
    """Prepare the case, then measure it with one thread."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    work = CASES[name](folder)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    times = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    (folder / "times.json").write_text(json.dumps(times))


if __name__ == "__main__":
    main()
