"""TriDigits: a digit seen (scikit-learn's digits), heard (synthetic speech) and hinted at in words.

Each modality alone is ambiguous: a model has to fuse. Splits share no image, no voice and no carrier phrase.
Shapes: N samples, T tokens, K coefficients, F frames.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import MODALITIES, Labels, Manifest
from furnace_hpc.data.columns import Splits, check_replaceable, open_columns, write_columns
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
    espeak_version,
    find_source,
    load_speech,
)

Progress = Callable[[str, int, int], None]  # what, done, total
RECIPE = 1  # raise it when the same knobs begin to make other columns
CHUNK = 50  # samples of one task of the pool: 4 MB of waveforms
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


def pack(
    knobs: TriDigitsKnobs, out: Path, progress: Progress, workers: int | None = None
) -> Manifest:
    """Make the data set and write it to `out`; `workers` threads (default: every usable core).

    Raises:
        ConfigError: espeak is asked for and missing, or `out` cannot be written.
    """
    check_replaceable(out)
    source = find_source(knobs.speech)
    progress("speech", 0, 1)
    utterances = load_speech(source, stream(knobs, SPEECH))
    progress("speech", 1, 1)
    plans = make_plan(knobs, np.random.default_rng(stream(knobs, PLAN)))
    splits = _make_splits(knobs, plans, utterances, progress, workers)
    return write_columns(
        out,
        splits=splits,
        dataset="tridigits",
        modalities=MODALITIES,
        labels={
            name.removeprefix("label."): Labels(
                kind="single_label", classes=LABELS[name.removeprefix("label.")]
            )
            for name in splits["train"]
            if name.startswith("label.")
        },
        statistics={name: channel_statistics(splits["train"][name]) for name in ("image", "audio")},
        vocab_size=len(VOCAB),
        preprocessing=_preprocessing(knobs, source),
        extra_versions={"espeak": espeak_version()} if source == "espeak" else None,
    )


def pack_once(
    knobs: TriDigitsKnobs,
    out: Path,
    progress: Progress,
    *,
    workers: int | None = None,
    force: bool = False,
) -> tuple[Manifest, bool]:
    """Pack unless `out` already holds these knobs' pack; return the manifest and whether it was packed now.

    Raises:
        ConfigError: `out` holds another pack and `force` is off.
    """
    existing = None if force else _whole_pack(out)
    if existing is None:
        return pack(knobs, out, progress, workers), True
    if _same_recipe(existing, knobs):
        return existing, False
    held = f"{existing.dataset} {existing.fingerprint} with other settings"
    raise ConfigError(
        f"folder {str(out)!r} holds {held}: choose another --out, or replace it with --force"
    )


def _whole_pack(folder: Path) -> Manifest | None:
    """Return the manifest of an undamaged pack; a damaged one counts as none: packing again fixes it."""
    try:
        return open_columns(folder).manifest
    except ConfigError:
        return None


def _preprocessing(knobs: TriDigitsKnobs, source: str) -> dict[str, Any]:
    return {
        "recipe": RECIPE,
        "knobs": knobs.model_dump(mode="json"),
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


def _same_recipe(manifest: Manifest, knobs: TriDigitsKnobs) -> bool:
    """Tell whether these knobs would make this pack; `auto` is content with either source of speech."""
    made = manifest.preprocessing
    old, new = dict(made.get("knobs", {})), knobs.model_dump(mode="json")
    same_speech = new.pop("speech") in ("auto", made.get("speech_source"))
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
    progress: Progress,
    workers: int | None,
) -> Splits:
    """Render every sample of every split."""
    spoken = spoken_of(utterances)
    digits_8x8 = load_digits().images / 16.0
    glyphs = np.stack([zoom(image, 3, order=1) for image in digits_8x8])
    total = sum(len(plan.sample_id) for plan in plans.values())
    splits: Splits = {}
    done = 0
    # One BLAS thread: its own threads would fight ours, and their number changes the last bits of a
    # product.
    with threadpool_limits(1), ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for split, plan in plans.items():
            num_samples = len(plan.sample_id)
            starts = range(0, num_samples, CHUNK)

            def render(
                start: int, plan: SplitPlan = plan
            ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
                rows = range(start, min(start + CHUNK, len(plan.sample_id)))
                return render_images(knobs, plan, rows, glyphs), render_sounds(
                    knobs, plan, rows, spoken
                )

            chunks = []
            for chunk in pool.map(render, starts):
                chunks.append(chunk)
                progress("samples", done + min(len(chunks) * CHUNK, num_samples), total)
            done += num_samples
            images, sounds = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
            splits[split] = _columns(plan, images, sounds)
    return splits


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
