"""Measure how fast packing turns raw files into columns, against the article's decoding, per core.

    python benchmarks/packing.py --work DIR     some minutes; DIR is filled with raw files and packs

The article decodes each sample when it is needed, with PIL and librosa, in one process per core.
Packing does the same work once, with checks, and writes it. Both are timed in turn from the first
chunk on, without start-up and imports. Packing is also timed as a whole.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import record
import soundfile
from PIL import Image, ImageFilter
from threadpoolctl import threadpool_limits

from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.sets.audioset import ClipKnobs, Lists, plan_audioset

CLIPS, REPEATS, CHUNK = 256, 5, 16
RATE, HOP, FRAMES = 16_000, 160, 640
GOAL = 0.9
# librosa's window and the article's plain resize, so that both sides do the same work.
KNOBS = ClipKnobs(
    ImageKnobs(fit="stretch"),
    SoundKnobs(hop=HOP, frames=FRAMES, window=2048),
    num_frames=1,
    val_fraction=0.1,
    num_classes=1,
)


def main() -> None:
    """Time both in turn, with one and two processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for raw files and packs; kept"
    )
    source = parser.parse_args().work / "raw"
    record.begin()
    if not (source / "done").exists():
        make_files(source)
    rates: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for workers in (1, 2):
            rates.setdefault(f"article, {workers} processes", []).append(article(source, workers))
            steady, whole = packing(source, workers)
            rates.setdefault(f"packing, {workers} workers", []).append(steady)
            rates.setdefault(
                f"packing, {workers} workers, start-up and hashes included", []
            ).append(whole)
    median = {name: statistics.median(values) for name, values in rates.items()}
    rows: list[dict[str, Any]] = [
        {
            "measure": name,
            "median_samples_per_s": round(value, 1),
            "all": [round(rate, 1) for rate in rates[name]],
        }
        for name, value in median.items()
    ]
    per_core = median["article, 1 processes"]
    for workers in (1, 2):
        # Ratios of consecutive measurements, so that the machine's load is alike on both sides.
        pairs = zip(
            rates[f"packing, {workers} workers"],
            rates[f"article, {workers} processes"],
            strict=True,
        )
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        rows.append(
            {
                "measure": f"packing over the article's, {workers} processes each",
                "ratio": round(ratio, 2),
                "goal": GOAL,
                "reached": ratio >= GOAL,
            }
        )
    against = median["packing, 2 workers"] / (2 * per_core)
    rows.append(
        {
            "measure": "packing, 2 workers, over 2 x the article's rate on one core",
            "ratio": round(against, 2),
            "goal": GOAL,
            "reached": against >= GOAL,
        }
    )
    speedup = median["packing, 2 workers"] / median["packing, 1 workers"]
    rows.append({"measure": "packing, 2 workers over 1", "ratio": round(speedup, 2)})
    record.write("packing", rows, f"{CLIPS} clips: JPEG 496 x 376 and 6.4 s of 16 kHz sound each")


def make_files(source: Path) -> None:
    """Make an AudioSet of one class with one frame per clip.

    Pictures have structure and grain. Sounds are 6.4 s of noise at 16 kHz.
    """
    (source / "audio").mkdir(parents=True)
    (source / "frames" / "frame_0").mkdir(parents=True)
    (source / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/0a,"Noise"\n')
    rng = np.random.default_rng(0)
    names = [f"clip{number:07}" for number in range(CLIPS)]
    for name in names:
        rough = Image.fromarray(rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)).resize(
            (496, 376), Image.BICUBIC
        )
        grain = rng.normal(0, 6, (376, 496, 1)).astype(np.float32)
        picture = np.clip(
            np.asarray(rough.filter(ImageFilter.GaussianBlur(2)), np.float32) + grain, 0, 255
        )
        Image.fromarray(picture.astype(np.uint8)).save(
            source / "frames" / "frame_0" / f"{name}.jpg", quality=90
        )
        soundfile.write(
            source / "audio" / f"{name}.wav", rng.normal(0, 0.1, RATE * 64 // 10 - 1), RATE
        )
    for part, clips in (("train", names[:-32]), ("val", names[-32:-16]), ("test", names[-16:])):
        entries = [{"video_id": clip, "labels": "/m/0a"} for clip in clips]
        (source / f"{part}.json").write_text(json.dumps({"data": entries}))
    (source / "done").touch()


def decode(source: Path, names: list[str]) -> int:
    """Decode a sample as the article does, without its normalisation."""
    with threadpool_limits(1):
        for name in names:
            picture = (
                Image.open(source / "frames" / "frame_0" / f"{name}.jpg")
                .convert("RGB")
                .resize((224, 224))
            )
            wave, _ = librosa.load(source / "audio" / f"{name}.wav", sr=RATE)
            coefficients = librosa.feature.mfcc(y=wave, sr=RATE, n_mfcc=40, hop_length=HOP)
            assert np.asarray(picture).shape == (224, 224, 3)
            assert coefficients.shape[1] >= FRAMES
    return len(names)


def article(source: Path, processes: int) -> float:
    """Samples per second of the article's decoding."""
    names = sorted(path.stem for path in (source / "audio").iterdir())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["librosa.feature.spectral"])
    with ProcessPoolExecutor(processes, context) as pool:
        list(pool.map(decode, [source] * 2 * processes, [names[:2]] * 2 * processes))  # imports
        chunks = [names[first : first + CHUNK] for first in range(0, len(names), CHUNK)]
        started_s = time.perf_counter()
        done = sum(pool.map(decode, [source] * len(chunks), chunks))
        return done / (time.perf_counter() - started_s)


def packing(source: Path, workers: int) -> tuple[float, float]:
    """Samples per second from the first chunk on, and of the whole packing."""
    out = source.with_name(f"pack-{workers}")
    shutil.rmtree(out, ignore_errors=True)
    times: list[tuple[float, int]] = []

    def report(what: str, done: int, total: int) -> None:
        if what == "samples" and done:
            times.append((time.perf_counter(), done))

    started_s = time.perf_counter()
    lists = Lists("train.json", "val.json", "test.json")
    plan = plan_audioset(source, lists, source / "audio", source / "frames", KNOBS)
    pack_files(plan, out, report, workers=workers, max_refused=0.0, force=False)
    whole_s = time.perf_counter() - started_s
    # The first chunks of all workers arrive at once. The clock starts with the last of them.
    first = times[workers - 1]
    return (times[-1][1] - first[1]) / (times[-1][0] - first[0]), CLIPS / whole_s


if __name__ == "__main__":
    main()
