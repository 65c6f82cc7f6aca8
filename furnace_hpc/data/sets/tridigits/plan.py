"""Draw the TriDigits samples, before anything is rendered: digits, images, voices and texts."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sklearn.datasets import load_digits

from furnace_hpc.data.sets.tridigits.speech import ACCENTS, VOICES

NUM_HELD_OUT_VOICES = 20  # in val and in test. With fewer, the two are not comparable.
MAX_POOLS = 10  # one of 10 parts has 12, 2 and 3 images of a digit, and 4, 2 and 2 voices
POOL_SEED = 20261128  # of the parts. They depend on nothing else, so they never overlap.
PHRASES = {
    "train": (
        "the number is {}",
        "i saw a digit that is {}",
        "it is {}",
        "this one looks {}",
        "they told me it was {}",
        "you should find a digit {}",
        "the answer must be {}",
        "a number that is {} for sure",
    ),
    "val": ("somebody wrote something {}", "we think it is {}"),
    "test": ("my guess would be {}", "remember that figure is {}", "the sign says {}"),
}
# Name -> (words when false, words when true, the digits for which it is true).
CLUES = (
    ("odd", "even", frozenset({0, 2, 4, 6, 8})),
    ("at least five", "below five", frozenset({0, 1, 2, 3, 4})),
    ("without loop", "with loop", frozenset({0, 6, 8, 9})),
    ("not prime", "prime", frozenset({2, 3, 5, 7})),
)
SILENT_TEXT = "the number is"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def _make_vocab() -> tuple[str, ...]:
    """Return the special tokens and the words of train phrases and clues.

    Other words of val and test become [UNK].
    """
    phrases = (*PHRASES["train"], *(words for clue in CLUES for words in clue[:2]), "and")
    words = {word for text in phrases for word in text.split()} - {"{}"}
    return SPECIAL_TOKENS + tuple(sorted(words))


VOCAB = _make_vocab()
_TOKEN_IDS = {token: token_id for token_id, token in enumerate(VOCAB)}
_LONGEST_PHRASE = max(len(text.split()) for texts in PHRASES.values() for text in texts) - 1
# The phrase without {}, two clues of three words, "and", [CLS] and [SEP].
MAX_TOKENS = _LONGEST_PHRASE + 2 * 3 + 1 + 2


class TriDigitsKnobs(BaseModel):
    """All settings that decide the columns of a TriDigits pack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Literal["digits", "xor", "redundant", "unique"] = Field(
        default="digits",
        description="digits: all modalities are about the same digit. The other variants have a "
        "text without information, and little noise. xor: the label is image digit xor audio "
        "digit, each 0 or 1. redundant: image and audio have the same digit. unique: the label is "
        "the image digit, and the audio digit is independent",
    )
    seed: int = Field(default=20261123, ge=0, description="seed of all random numbers")
    pool: str | None = Field(
        default=None,
        description="I/K: use the I-th of K parts of each digit's images and of the voices. The K "
        "packs of a pool share no image and no voice. None: use all",
    )
    train: int = Field(default=4000, ge=1, description="samples of the train split")
    val: int = Field(default=1000, ge=1, description="samples of the val split")
    test: int = Field(default=2000, ge=1, description="samples of the test split")
    snr_db: float = Field(
        default=-6.0,
        ge=-60,
        le=60,
        description="speech over noise in dB, measured while the digit is spoken",
    )
    image_noise: float = Field(
        default=0.2, ge=0, le=1, description="deviation of pixel noise. A glyph has values 0 to 1"
    )
    occlusion: float = Field(
        default=0.2, ge=0, le=1, description="probability of a black bar 10-16 pixels wide"
    )
    two_clues: float = Field(
        default=1.0, ge=0, le=1, description="probability of two clues in the text, else one"
    )
    false_clue: float = Field(
        default=0.1, ge=0, le=1, description="probability that a clue is of a random digit"
    )
    speech: Literal["bank", "espeak"] = Field(
        default="bank",
        description="source of speech. bank: shipped recordings of espeak, the same bytes on every "
        "machine. espeak: new speech for each seed, whose bytes depend on the C library",
    )

    @model_validator(mode="before")
    @classmethod
    def _little_noise(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Default to little noise, except for `digits`: the other variants test fusion alone."""
        if values.get("variant", "digits") == "digits":
            return values
        return {"snr_db": 10.0, "image_noise": 0.1, "occlusion": 0.0} | values

    @field_validator("pool")
    @classmethod
    def _is_part_of_a_pool(cls, pool: str | None) -> str | None:
        """Refuse text that is not I/K, or an I or K that is out of range."""
        if pool is None:
            return None
        found = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", pool)
        if not found or int(found[1]) > int(found[2]) or not 2 <= int(found[2]) <= MAX_POOLS:
            raise ValueError(f"wanted I/K with I from 1 to K, and K from 2 to {MAX_POOLS}")
        return pool

    @property
    def part_and_parts(self) -> tuple[int, int]:
        """Which part of the pool is used, from 1, and the number of parts."""
        part, _, parts = (self.pool or "1/1").partition("/")
        return int(part), int(parts)


@dataclass(frozen=True)
class SplitPlan:
    """The drawn properties of one split's samples: arrays and lists of length N."""

    sample_id: NDArray[np.int32]
    image: NDArray[np.int64]  # index into scikit-learn's digits
    audio_digit: NDArray[np.int64]
    voice: list[str]
    accent: list[str]
    phrase: list[str]
    text: list[str]
    labels: dict[str, NDArray[np.int64]]  # task -> class index


def make_plan(knobs: TriDigitsKnobs, rng: np.random.Generator) -> dict[str, SplitPlan]:
    """Draw the samples of all splits, which share no image, voice or phrase."""
    images = _split_images(knobs, rng)
    voices = _split_voices(knobs, rng)
    plans: dict[str, SplitPlan] = {}
    first_id = 0
    for split, num_samples in (("train", knobs.train), ("val", knobs.val), ("test", knobs.test)):
        sample_id = np.arange(first_id, first_id + num_samples, dtype=np.int32)
        plans[split] = _plan_split(
            knobs, rng, sample_id, images[split], voices[split], PHRASES[split]
        )
        first_id += num_samples
    return plans


def _split_images(
    knobs: TriDigitsKnobs, rng: np.random.Generator
) -> dict[str, list[NDArray[np.int64]]]:
    """Return split -> digit -> indices of images: 70, 10 and 20 % of each digit."""
    targets = load_digits().target
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        shuffled = rng.permutation(_part(knobs, np.flatnonzero(targets == digit), digit))
        cuts = [round(0.7 * len(shuffled)), round(0.8 * len(shuffled))]
        for split, part in zip(parts, np.split(shuffled, cuts), strict=True):
            parts[split].append(part)
    return parts


def _split_voices(knobs: TriDigitsKnobs, rng: np.random.Generator) -> dict[str, list[str]]:
    """Return split -> voices: 20 to val, 20 to test, the others to train.

    A part of the voices is split in the same proportions.
    """
    own = _part(knobs, np.arange(len(VOICES)), 10)
    shuffled = [VOICES[index] for index in rng.permutation(own)]
    val_end = round(NUM_HELD_OUT_VOICES * len(shuffled) / len(VOICES))
    test_end = 2 * val_end
    return {
        "train": shuffled[test_end:],
        "val": shuffled[:val_end],
        "test": shuffled[val_end:test_end],
    }


def _part(knobs: TriDigitsKnobs, members: NDArray[np.int64], stream_id: int) -> NDArray[np.int64]:
    """Return the knobs' part of the images of a digit (streams 0 to 9) or of the voices (10)."""
    part, parts = knobs.part_and_parts
    if parts == 1:
        return members
    seeds = np.random.SeedSequence(POOL_SEED, spawn_key=(stream_id,))
    shuffled = np.random.default_rng(seeds).permutation(members)
    return np.sort(shuffled[part - 1 :: parts])


def _plan_split(
    knobs: TriDigitsKnobs,
    rng: np.random.Generator,
    sample_id: NDArray[np.int32],
    images: list[NDArray[np.int64]],
    voices: list[str],
    phrases: tuple[str, ...],
) -> SplitPlan:
    """Draw the samples of one split."""
    num_samples = len(sample_id)
    num_digits = 2 if knobs.variant == "xor" else 10
    seen = heard = rng.integers(0, num_digits, num_samples)
    if knobs.variant in ("xor", "unique"):
        heard = rng.integers(0, num_digits, num_samples)
    accent = rng.integers(0, len(ACCENTS), num_samples)
    phrase = [phrases[index] for index in rng.integers(0, len(phrases), num_samples)]
    text = [SILENT_TEXT] * num_samples
    match knobs.variant:
        case "xor":
            labels = {"xor": (seen + heard) % 2, "image_digit": seen, "audio_digit": heard}
        case "redundant":
            labels = {"digit": seen}
        case "unique":
            labels = {"digit": seen, "distractor": heard}
        case "digits":
            labels = {"digit": seen, "parity": seen % 2, "accent": accent}
            text = [
                p.format(_clue_text(knobs, rng, int(d))) for p, d in zip(phrase, seen, strict=True)
            ]
    return SplitPlan(
        sample_id=sample_id,
        image=np.array([rng.choice(images[digit]) for digit in seen]),
        audio_digit=heard,
        voice=[voices[index] for index in rng.integers(0, len(voices), num_samples)],
        accent=[ACCENTS[index] for index in accent],
        phrase=phrase,
        text=text,
        labels=labels,
    )


def _clue_text(knobs: TriDigitsKnobs, rng: np.random.Generator, digit: int) -> str:
    """Return one or two clues to the digit.

    A clue may be of a random digit. It is often still true then.
    """
    count = 2 if rng.random() < knobs.two_clues else 1
    words = []
    for kind in rng.permutation(len(CLUES))[:count]:
        source = digit
        if rng.random() < knobs.false_clue:
            source = int(rng.integers(0, 10))
        if_false, if_true, true_for = CLUES[kind]
        words.append(if_true if source in true_for else if_false)
    return " and ".join(words)


def encode(text: str) -> list[int]:
    """Return the token ids of a text, between [CLS] and [SEP]. Unknown words are [UNK]."""
    tokens = ["[CLS]", *text.split(), "[SEP]"]
    return [_TOKEN_IDS.get(token, _TOKEN_IDS["[UNK]"]) for token in tokens]
