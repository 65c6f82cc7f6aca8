"""Measure how fast packing turns raw files into columns, against the article's decoding, per core.

    python benchmarks/packing.py --work DIR     some minutes; DIR is filled with raw files and packs

The article decodes each sample when it is needed, with PIL and librosa, in one process per core.
Packing does the same work once, with checks, and writes it. All are timed in turn from the first
chunk on, without start-up and imports. Packing is also timed as a whole.

`pack table` reads the same files with its own defaults, which are a window of 1024 samples and the
middle square of an image, and 6 s of sound. `article, window of 1024` does this work with the
article's calls, so its ratio is that of the code alone.
"""

import argparse
import io
import json
import multiprocessing
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import record
import soundfile
from PIL import Image, ImageFilter
from threadpoolctl import threadpool_limits

from furnace_hpc import pack
from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.packing.sample import PackPlan
from furnace_hpc.data.sets.audioset import ClipKnobs, Lists, plan_audioset
from furnace_hpc.data.table import run

CLIPS, REPEATS, CHUNK = 256, 5, 16
RATE, HOP, FRAMES = 16_000, 160, 640
GOAL, SCALING_GOAL = 1.3, 1.8
WINDOW, TABLE_WINDOW, TABLE_SECONDS = 2048, 1024, 6.0
# librosa's window and the article's plain resize, so that both sides do the same work.
KNOBS = ClipKnobs(
    ImageKnobs(fit="stretch"),
    SoundKnobs(hop=HOP, frames=FRAMES, window=WINDOW),
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
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given = parser.parse_args()
    source = given.work / f"raw-{given.clips}"
    record.begin()
    if not (source / "done").exists():
        make_files(source, given.clips)
    rates: dict[str, list[float]] = {}

    def measured(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(rate)

    for _ in range(given.repeats):
        for workers in (1, 2):
            measured(f"article, {workers} processes", article(source, workers, WINDOW))
            for name, timed in (("packing", packing), ("pack table", pack_table)):
                steady, whole = timed(source, workers)
                measured(f"{name}, {workers} workers", steady)
                measured(f"{name}, {workers} workers, start-up and hashes included", whole)
        measured("article, window of 1024, 2 processes", article(source, 2, TABLE_WINDOW))
    rows = table(rates)
    note = f"{given.clips} clips: JPEG 496 x 376 and 6.4 s of 16 kHz sound each"
    record.write("packing", rows, note)


def table(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a row for each way, and the ratios with their goals."""
    median = {name: statistics.median(values) for name, values in rates.items()}
    rows: list[dict[str, Any]] = [
        {
            "measure": name,
            "median_samples_per_s": round(value, 1),
            "all": [round(rate, 1) for rate in rates[name]],
        }
        for name, value in median.items()
    ]
    for ours, theirs, goal in (
        ("packing, 1 workers", "article, 1 processes", None),
        ("packing, 2 workers", "article, 2 processes", GOAL),
        ("pack table, 2 workers", "article, 2 processes", GOAL),
        ("pack table, 2 workers", "article, window of 1024, 2 processes", None),
        ("packing, 2 workers", "packing, 1 workers", SCALING_GOAL),
        ("pack table, 2 workers", "pack table, 1 workers", SCALING_GOAL),
        ("article, 2 processes", "article, 1 processes", None),
    ):
        # Ratios of the same repeat, so that the machine's load is alike on both sides.
        pairs = zip(rates[ours], rates[theirs], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        row: dict[str, Any] = {"measure": f"{ours} : {theirs}", "ratio": round(ratio, 2)}
        if goal:
            row |= {"goal": goal, "reached": ratio >= goal}
        rows.append(row)
    return rows


def make_files(source: Path, num_clips: int) -> None:
    """Make an AudioSet of one class with one frame per clip, and a table of the same files.

    Pictures have structure and grain. Sounds are 6.4 s of noise at 16 kHz.
    """
    (source / "audio").mkdir(parents=True)
    (source / "frames" / "frame_0").mkdir(parents=True)
    (source / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/0a,"Noise"\n')
    rng = np.random.default_rng(0)
    names = [f"clip{number:07}" for number in range(num_clips)]
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
    lines = [f"{name},{'ab'[number % 2]}\n" for number, name in enumerate(names)]
    (source / "clips.csv").write_text("clip,kind\n" + "".join(lines))
    (source / "done").touch()


def decode(source: Path, names: list[str], window: int) -> int:
    """Decode samples as the article does, without its normalisation."""
    with threadpool_limits(1):
        for name in names:
            picture = (
                Image.open(source / "frames" / "frame_0" / f"{name}.jpg")
                .convert("RGB")
                .resize((224, 224))
            )
            wave, _ = librosa.load(source / "audio" / f"{name}.wav", sr=RATE)
            coefficients = librosa.feature.mfcc(
                y=wave, sr=RATE, n_mfcc=40, hop_length=HOP, n_fft=window
            )
            assert np.asarray(picture).shape == (224, 224, 3)
            assert coefficients.shape[1] >= FRAMES
    return len(names)


def article(source: Path, processes: int, window: int) -> float:
    """Samples per second of the article's decoding."""
    names = sorted(path.stem for path in (source / "audio").iterdir())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["librosa.feature.spectral"])
    with ProcessPoolExecutor(processes, context) as pool:
        twice = 2 * processes
        list(pool.map(decode, [source] * twice, [names[:2]] * twice, [window] * twice))  # imports
        chunks = [names[first : first + CHUNK] for first in range(0, len(names), CHUNK)]
        started_s = time.perf_counter()
        done = sum(pool.map(decode, [source] * len(chunks), chunks, [window] * len(chunks)))
        return done / (time.perf_counter() - started_s)


def packing(source: Path, workers: int) -> tuple[float, float]:
    """Samples per second from the first chunk on, and of the whole packing."""
    out = source.with_name(f"pack-{workers}")
    shutil.rmtree(out, ignore_errors=True)
    started_s = time.perf_counter()
    lists = Lists("train.json", "val.json", "test.json")
    plan = plan_audioset(source, lists, source / "audio", source / "frames", KNOBS)
    steady = packed(plan, out, workers)
    return steady, sum(map(len, plan.rows.values())) / (time.perf_counter() - started_s)


def pack_table(source: Path, workers: int) -> tuple[float, float]:
    """Rows per second from the first chunk on, and of the whole command with all checks."""
    out = source.with_name(f"table-{workers}")
    shutil.rmtree(out, ignore_errors=True)
    found = []

    def timed(plan: PackPlan, folder: Path, **_: Any) -> None:
        found.append((packed(plan, folder, workers), sum(map(len, plan.rows.values()))))

    run.pack_plan = timed
    started_s = time.perf_counter()
    command = ["table", "--source", str(source / "clips.csv"), "--label", "kind", "--id", "clip"]
    command += ["--image", "frames/frame_0/{clip}.jpg", "--audio", "audio/{clip}.wav"]
    command += ["--split", "80/10/10", "--audio-seconds", str(TABLE_SECONDS), "--out", str(out)]
    with redirect_stdout(io.StringIO()):
        pack.main(args=command, standalone_mode=False)
    ((steady, num_rows),) = found
    return steady, num_rows / (time.perf_counter() - started_s)


def packed(plan: PackPlan, out: Path, workers: int) -> float:
    """Pack, and return rows per second from the first chunk on."""
    times: list[tuple[float, int]] = []

    def report(what: str, done: int, total: int) -> None:
        if what == "samples" and done:
            times.append((time.perf_counter(), done))

    pack_files(plan, out, report, workers=workers, max_refused=0.0, force=False)
    # The first chunks of all workers arrive at once. The clock starts with the last of them.
    first = times[workers - 1]
    return (times[-1][1] - first[1]) / (times[-1][0] - first[0])


if __name__ == "__main__":
    main()
