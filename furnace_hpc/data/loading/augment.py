"""Augmentation: random changes of the samples of a batch, on the host, before standardisation.

B batch, K coefficients, F frames of sound, T tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from furnace_hpc.config.augmentation import audio_feature, check_augmentation, special_tokens
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.sections.augment import AudioAugmentation, AugmentConfig
from furnace_hpc.data.jpeg_images import Box
from furnace_hpc.data.loading.augment_images import DRAWS, augment_images, boxes_of, crop
from furnace_hpc.data.loading.draws import Rows, Stream, generators, uniform

NUM_BANDS = 128  # mel bands of which MFCC are computed

Array = NDArray[Any]


@dataclass(frozen=True)
class DrawnSamples:
    """The samples of a batch, and what is drawn for their images."""

    rows: Rows
    epochs: Rows
    image: NDArray[np.float64]
    boxes: list[Box] | None
    """The crop of each image. None if images are not cropped."""


class Augmenter:
    """Changes batches of the train split. The same sample of an epoch is always changed alike."""

    def __init__(
        self, config: AugmentConfig, seed: int, manifest: Manifest, modalities: tuple[str, ...]
    ) -> None:
        """Prepare what does not depend on a batch.

        Raises:
            ConfigError: the data set does not allow an augmentation.
        """
        check_augmentation(config, modalities, manifest)
        self._config, self._seed = config, seed
        special = special_tokens(manifest)
        self._special_ids = np.array([*special.values(), manifest.pad_id])
        self._replacement = special.get("[MASK]", special.get("[UNK]", 0))
        if config.audio.is_on:
            statistics = manifest.statistics["audio"]
            self._mean_K = np.array(statistics.mean)
            self._std_K = np.array(statistics.std)
        self._gain_K = np.zeros(1)
        if config.audio.gain_db:
            self._gain_K = gain_vector(audio_feature(manifest), len(self._mean_K))

    def draw(self, rows: Rows, epochs: Rows) -> DrawnSamples:
        """Draw what the images of these samples need."""
        config, drawn, boxes = self._config.image, np.empty((len(rows), 0)), None
        if config.is_on:
            drawn = uniform(self._seed, epochs, rows, Stream.IMAGE, DRAWS)
            if config.crop < 1:
                boxes = boxes_of(drawn, config.crop)
        return DrawnSamples(rows, epochs, drawn, boxes)

    def mix(self, samples: DrawnSamples) -> tuple[Rows, NDArray[np.float32]] | None:
        """Return the partner of each sample, as a place in the batch, and its own weight.

        Samples are ordered by a drawn number, and each one's partner is the next one. The weight is
        drawn from Beta(a, a). Both depend on the samples of the batch alone, not on their places.
        """
        alpha = self._config.mixup
        if not alpha:
            return None
        made = generators(self._seed, samples.epochs, samples.rows, Stream.MIXUP)
        drawn = np.array([(one.random(), one.beta(alpha, alpha)) for one in made]).reshape(-1, 2)
        order = np.lexsort((samples.rows, drawn[:, 0]))
        partner = np.empty_like(order)
        partner[order] = np.roll(order, -1)
        return partner.astype(np.int64), drawn[:, 1].astype(np.float32)

    def apply(self, columns: dict[str, Array], samples: DrawnSamples, is_cropped: bool) -> None:
        """Change stored values in place.

        Args:
            columns: name -> values [B, ...].
            samples: the samples, from `draw`.
            is_cropped: whether the images are crops already.
        """
        if self._config.image.is_on:
            if samples.boxes and not is_cropped:
                crop(columns["image"], samples.boxes)
            augment_images(columns["image"], samples.image, self._config.image)
        if self._config.audio.is_on:
            self._change_sounds(columns["audio"], columns.get("audio_length"), samples)
        if self._config.text.is_on:
            self._drop_tokens(columns["text"], samples)

    def _change_sounds(
        self, sounds_BKF: Array, lengths_B: Array | None, samples: DrawnSamples
    ) -> None:
        config = self._config.audio
        K, F = sounds_BKF.shape[1:]
        if lengths_B is None:
            lengths_B = np.full(len(sounds_BKF), F)
        given = self._seed, samples.epochs, samples.rows
        if config.gain_db or config.noise:
            gains_B = config.gain_db * (2 * uniform(*given, Stream.GAIN, 1)[:, 0] - 1)
            made = generators(*given, Stream.NOISE)
            for sound, length, gain, generator in zip(
                sounds_BKF, lengths_B.tolist(), gains_B.tolist(), made, strict=True
            ):
                change = (gain * self._gain_K)[:, None]
                if config.noise:
                    # all frames, so that the draws do not depend on the length
                    noise_FK = generator.standard_normal((F, K))[:length]
                    change = change + config.noise * self._std_K[:, None] * noise_FK.T
                sound[:, :length] = _stored(sound[:, :length] + change, sound.dtype)
        drawn = uniform(*given, Stream.MASKS, 2 * (config.time_masks + config.frequency_masks))
        hidden_BKF = masks(drawn, lengths_B, (K, F), config)
        means = np.broadcast_to(_stored(self._mean_K, sounds_BKF.dtype)[:, None], (K, F))
        np.copyto(sounds_BKF, means, where=hidden_BKF)

    def _drop_tokens(self, tokens_BT: Array, samples: DrawnSamples) -> None:
        given = self._seed, samples.epochs, samples.rows
        drawn_BT = uniform(*given, Stream.TOKENS, tokens_BT.shape[1])
        chosen_BT = drawn_BT < self._config.text.token_dropout
        chosen_BT &= ~np.isin(tokens_BT, self._special_ids)
        tokens_BT[chosen_BT] = self._replacement


def gain_vector(feature: str | None, num_coefficients: int) -> NDArray[np.float64]:
    """Return the change of each coefficient by 1 dB [K].

    Each mel band changes by 1 dB. The orthonormal cosine transform of a constant is in MFCC 0
    alone.
    """
    if feature == "log_mel":
        return np.ones(num_coefficients)
    change = np.zeros(num_coefficients)
    change[0] = np.sqrt(NUM_BANDS)
    return change


def masks(
    drawn: NDArray[np.float64], lengths_B: Array, shape: tuple[int, int], config: AudioAugmentation
) -> NDArray[np.bool_]:
    """Return where SpecAugment (Park et al. 2019) hides values [B, K, F].

    A mask's width is uniform from 0 to its largest. Its start is uniform among those for which the
    mask fits into the coefficients, or into the sound's valid frames.
    """
    K, F = shape
    B = len(drawn)
    lengths_B = np.minimum(lengths_B.astype(np.int64), F)
    hidden = np.zeros((B, K, F), bool)
    limit_B = np.floor(config.time_mask_fraction * lengths_B).astype(np.int64)
    for number in range(config.time_masks):
        widest_B = np.minimum(config.time_mask, limit_B)
        inside_BF = _spans(drawn[:, 2 * number : 2 * number + 2], widest_B, lengths_B, F)
        hidden |= inside_BF[:, None, :]
    for number in range(config.time_masks, config.time_masks + config.frequency_masks):
        widest_B = np.full(B, min(config.frequency_mask, K))
        inside_BK = _spans(drawn[:, 2 * number : 2 * number + 2], widest_B, np.full(B, K), K)
        hidden |= inside_BK[:, :, None]
    return hidden & (np.arange(F) < lengths_B[:, None])[:, None, :]


def _spans(
    drawn_B2: NDArray[np.float64], widest_B: Array, size_B: Array, count: int
) -> NDArray[np.bool_]:
    """Return the random spans [B, count] that are at most so wide, and end within the sizes."""
    width_B = np.floor(drawn_B2[:, 0] * (widest_B + 1)).astype(np.int64)
    start_B = np.floor(drawn_B2[:, 1] * (size_B - width_B + 1)).astype(np.int64)
    position = np.arange(count)
    inside = (position >= start_B[:, None]) & (position < (start_B + width_B)[:, None])
    return np.asarray(inside)


def _stored(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return values in the stored type. Those beyond it become the nearest one."""
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind != "f":
        values = np.rint(values)
    return np.clip(values, limits.min, limits.max).astype(dtype)
