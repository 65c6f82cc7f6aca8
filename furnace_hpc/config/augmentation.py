"""Whether a data set allows the augmentations of a row, from its manifest alone."""

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.sections.augment import AugmentConfig

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DECIBELS = ("mfcc", "log_mel")  # features whose unit is known
PIXELS = ("uint8", "float16", "float32", "float64")  # types of images that can be resized


def special_tokens(manifest: Manifest) -> dict[str, int]:
    """Return the special tokens of a pack's tokenizer and their ids. Empty if it names none."""
    if manifest.special_tokens:
        return manifest.special_tokens
    settings = manifest.preprocessing
    draw = settings.get("draw")
    words = settings.get("vocab")  # TriDigits
    if not words and isinstance(draw, dict):
        words = draw.get("words")  # a table without a tokenizer
    return {word: number for number, word in enumerate(words or ()) if word in SPECIAL_TOKENS}


def audio_feature(manifest: Manifest) -> str | None:
    """Return mfcc or log_mel, if the sounds of a pack are one of them."""
    settings = manifest.preprocessing.get("audio")
    feature = settings.get("feature") if isinstance(settings, dict) else None
    return feature if feature in DECIBELS else None


def check_augmentation(
    augment: AugmentConfig, modalities: tuple[str, ...], manifest: Manifest
) -> None:
    """Raise ConfigError if the data set, or the network's modalities, do not allow it."""
    for name in augment.modalities:
        if name not in modalities:
            raise ConfigError(
                f"augment.{name} is set, and model.modalities is {list(modalities)}. Remove "
                f"augment.{name}, or add the modality"
            )
    if augment.image.is_on:
        _check_images(augment, manifest)
    if augment.audio.is_on and len(manifest.columns["audio"].shape) != 2:
        raise ConfigError(
            "augment.audio is for sounds that are stored as coefficients of frames. Remove it"
        )
    if augment.audio.gain_db and audio_feature(manifest) is None:
        raise ConfigError(
            f"augment.audio.gain_db is for MFCC and log-mel in decibels, and the manifest of "
            f"{manifest.dataset} names neither. Remove it"
        )
    if augment.text.is_on and not {"[MASK]", "[UNK]"} & special_tokens(manifest).keys():
        raise ConfigError(
            f"augment.text.token_dropout needs the tokenizer's special tokens, and the manifest of "
            f"{manifest.dataset} names none. Pack the set again, or remove it"
        )


def _check_images(augment: AugmentConfig, manifest: Manifest) -> None:
    dtype = manifest.columns["image"].dtype
    if augment.image.colour and dtype != "uint8":
        raise ConfigError(
            f"augment.image.colour is for images of 8 bits, and those of {manifest.dataset} are "
            f"{dtype}. Remove it"
        )
    if augment.image.crop < 1 and dtype not in PIXELS:
        raise ConfigError(
            f"augment.image.crop is for images of {', '.join(PIXELS)}, and those of "
            f"{manifest.dataset} are {dtype}. Remove it"
        )
