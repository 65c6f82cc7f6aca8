"""Pack TriDigits: digits as image (scikit-learn's digits), synthetic speech and text clues.

Each modality alone is ambiguous, so a model must fuse them. Splits share no image, voice or phrase.
Shapes: N samples, T tokens, K coefficients, F frames.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Labels, Manifest
from furnace_hpc.console.progress_bar import Report
from furnace_hpc.data.columns import (
    Splits,
    check_replaceable,
    open_columns,
    other_pack,
    write_columns,
)
from furnace_hpc.data.decode.features import channel_statistics
from furnace_hpc.data.sets.tridigits.plan import (
    MAX_TOKENS,
    VOCAB,
    SplitPlan,
    TriDigitsKnobs,
    encode,
    make_plan,
)
from furnace_hpc.data.sets.tridigits.render import (
    HOP,
    NUM_COEFFICIENTS,
    PLAN,
    SPEECH,
    Spoken,
    render_images,
    render_sounds,
    spoken_of,
    stream,
)
from furnace_hpc.data.sets.tridigits.speech import (
    ACCENTS,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    Utterance,
    check_source,
    espeak_version,
    load_speech,
)

MODALITIES = ("text", "image", "audio")
RECIPE = 1  # increase it if the same settings make other columns
CHUNK = 50  # samples per task of the thread pool: 4 MB of waveforms
DIGIT_NAMES = tuple(str(digit) for digit in range(10))
LABELS = {
    "digit": DIGIT_NAMES,
    "parity": ("even", "odd"),
    "accent": ACCENTS,
    "distractor": DIGIT_NAMES,
    "xor": ("same parity", "other parity"),
    "image_digit": ("0", "1"),
    "audio_digit": ("0", "1"),
}


def pack(knobs: TriDigitsKnobs, out: Path, report: Report, workers: int | None = None) -> Manifest:
    """Make the data set and write it to `out`.

    Args:
        knobs: the settings.
        out: folder of the pack.
        report: called with the kind of work, the number done, and the total.
        workers: threads that render. None: all usable cores. Any number gives the same pack.

    Raises:
        ConfigError: espeak is chosen but missing, or `out` cannot be written.
    """
    check_replaceable(out)
    source = check_source(knobs.speech)
    report("speech", 0, 1)
    utterances = load_speech(source, stream(knobs, SPEECH))
    report("speech", 1, 1)
    plans = make_plan(knobs, np.random.default_rng(stream(knobs, PLAN)))
    splits = _make_splits(knobs, plans, utterances, report, workers)
    train = splits["train"]
    tasks = [name.removeprefix("label.") for name in train if name.startswith("label.")]
    extra_versions = {}
    if source == "espeak":
        extra_versions["espeak"] = espeak_version()
    return write_columns(
        out,
        splits=splits,
        dataset="tridigits",
        modalities=MODALITIES,
        labels={task: Labels(kind="single_label", classes=LABELS[task]) for task in tasks},
        statistics={name: channel_statistics(train[name]) for name in ("image", "audio")},
        vocab_size=len(VOCAB),
        preprocessing=_preprocessing(knobs, source),
        extra_versions=extra_versions,
    )


def pack_once(
    knobs: TriDigitsKnobs,
    out: Path,
    report: Report,
    *,
    workers: int | None = None,
    force: bool = False,
) -> tuple[Manifest, bool]:
    """Pack unless `out` holds the same pack. Return the manifest, and whether it was packed now.

    Raises:
        ConfigError: `out` holds another pack and `force` is off.
    """
    existing = None
    if not force:
        existing = _complete_pack(out)
    if existing is None:
        return pack(knobs, out, report, workers), True
    if not _same_settings(existing, knobs):
        raise other_pack(out, existing)
    return existing, False


def _complete_pack(folder: Path) -> Manifest | None:
    """Return the manifest of a pack. None if it is missing or damaged."""
    try:
        return open_columns(folder).manifest
    except ConfigError:
        return None


def _preprocessing(knobs: TriDigitsKnobs, source: str) -> dict[str, Any]:
    return {
        "recipe": RECIPE,
        "knobs": _dump(knobs),
        "speech_source": source,
        "vocab": list(VOCAB),
        "image": {"height": 32, "width": 32, "channels": 1},
        "audio": {
            "feature": "mfcc",
            "sample_rate_hz": SAMPLE_RATE,
            "hop": HOP,
            "num_coefficients": NUM_COEFFICIENTS,
            "window_s": WINDOW_SAMPLES / SAMPLE_RATE,
        },
    }


def _dump(knobs: TriDigitsKnobs) -> dict[str, Any]:
    """Return the knobs as plain data. `pool` is left out if it is not set, as in older packs."""
    return knobs.model_dump(mode="json", exclude_none=True)


def _same_settings(manifest: Manifest, knobs: TriDigitsKnobs) -> bool:
    """Return whether these settings make this pack."""
    made = manifest.preprocessing
    old, new = dict(made.get("knobs", {})), _dump(knobs)
    # the knobs of older packs may have `auto`
    same_speech = new.pop("speech") == made.get("speech_source")
    old.pop("speech", None)
    return (
        manifest.dataset == "tridigits"
        and made.get("recipe") == RECIPE
        and same_speech
        and old == new
    )


def _make_splits(
    knobs: TriDigitsKnobs,
    plans: dict[str, SplitPlan],
    utterances: list[Utterance],
    report: Report,
    workers: int | None,
) -> Splits:
    """Render all samples of all splits."""
    spoken = spoken_of(utterances)
    digits_8x8 = load_digits().images / 16.0
    glyphs = np.stack([zoom(image, 3, order=1) for image in digits_8x8])
    total = sum(len(plan.sample_id) for plan in plans.values())
    splits: Splits = {}
    done = 0
    # One BLAS thread: more would compete with the pool, and their number changes the last bits.
    with threadpool_limits(1), ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for split, plan in plans.items():
            render = partial(_render_chunk, knobs, plan, glyphs, spoken)
            num_samples = len(plan.sample_id)
            chunks = []
            for chunk in pool.map(render, range(0, num_samples, CHUNK)):
                chunks.append(chunk)
                report("samples", done + min(len(chunks) * CHUNK, num_samples), total)
            done += num_samples
            images, sounds = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
            splits[split] = _columns(plan, images, sounds)
    return splits


def _render_chunk(
    knobs: TriDigitsKnobs,
    plan: SplitPlan,
    glyphs: NDArray[np.float64],
    spoken: Spoken,
    start: int,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return images and coefficients of up to `CHUNK` samples."""
    rows = range(start, min(start + CHUNK, len(plan.sample_id)))
    return render_images(knobs, plan, rows, glyphs), render_sounds(knobs, plan, rows, spoken)


def _columns(
    plan: SplitPlan, images: NDArray[np.uint8], sounds: NDArray[np.float16]
) -> dict[str, NDArray[Any]]:
    """Return the columns of one split, [N, ...] each."""
    num_samples, _, num_frames = sounds.shape
    tokens = [encode(text) for text in plan.text]
    padded = np.zeros((num_samples, MAX_TOKENS), np.int16)
    for row, ids in zip(padded, tokens, strict=True):
        row[: len(ids)] = ids
    columns: dict[str, NDArray[Any]] = {
        "sample_id": plan.sample_id,
        "image": images,
        "audio": sounds,
        "audio_length": np.full(num_samples, num_frames, np.int16),
        "text": padded,
        "text_length": np.array([len(ids) for ids in tokens], np.int16),
        "present": np.ones((num_samples, len(MODALITIES)), np.uint8),
    }
    return columns | {
        f"label.{task}": label.astype(np.int16) for task, label in plan.labels.items()
    }
