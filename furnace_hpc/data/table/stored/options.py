"""Choose how texts, images and sounds of a table are stored, from the options of the command."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.preprocessing.audio import AudioNeeds
from furnace_hpc.config.preprocessing.image import ImageNeeds
from furnace_hpc.config.preprocessing.record import MadeFor, parse_for
from furnace_hpc.config.preprocessing.text import TextNeeds
from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.for_encoder.images import EncoderImageKnobs
from furnace_hpc.data.decode.for_encoder.sounds import (
    EncoderSoundKnobs,
    WaveformKnobs,
    sound_knobs_for,
)
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.decode.word_tokenizer import WORDS
from furnace_hpc.data.packing.pack_command import choice, knobs_of, stored_size_of
from furnace_hpc.data.table.stored.knobs import Knobs

MAX_TOKENS = 128
SECONDS = 6.4
IMAGE_SIZE = 224
RATE_HZ = 16_000
COEFFICIENTS = 40


class StorageOptions(NamedTuple):
    """The options of `furnace pack table` on what is stored. None: the default."""

    for_: list[str] | None
    tokenizer: str
    max_tokens: int | None
    image_size: int | None
    image_store: str
    image_stored_size: int | None
    image_fit: str | None
    audio_seconds: float | None
    audio_store: str
    audio_rate: int | None
    feature: str | None
    coefficients: int | None


def knobs_from(given: Mapping[str, Any]) -> Knobs:
    """Return the settings of a pack from the options of the command, by their names.

    Raises:
        ConfigError: an option is invalid, or contradicts `--for`, or an encoder cannot be used.
    """
    options = StorageOptions(*(given[name] for name in StorageOptions._fields))
    choice("--audio-store", options.audio_store, ("features", "waveform"))
    choice("--image-store", options.image_store, ("pixels", "jpeg"))
    made_for = parse_for(options.for_)
    tokenizer, max_tokens = _text(made_for.get("text"), options)
    return Knobs(
        image=_image(made_for.get("image"), options),
        sound=_sound(made_for.get("audio"), options),
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        made_for=made_for,
    )


def jpeg_size(store: str, size: int | None) -> int | None:
    """Return the height and width of an image in a batch. None if images are stored as pixels."""
    if store != "jpeg":
        return None
    return IMAGE_SIZE if size is None else size


def _check_free(made: MadeFor, modality: str, **given: Any) -> None:
    """Raise ConfigError if an option is given that the encoder decides."""
    for option, value in given.items():
        if value is not None:
            name = option.replace("_", "-")
            raise ConfigError(
                f"--{name} and --for {modality}={made.encoder} are both given, and the encoder "
                f"decides it. Leave --{name} out"
            )


def _text(made: MadeFor | None, options: StorageOptions) -> tuple[str, int]:
    if made is None:
        return options.tokenizer, options.max_tokens or MAX_TOKENS
    assert isinstance(made.needs, TextNeeds)
    _check_free(made, "text", tokenizer=None if options.tokenizer == WORDS else options.tokenizer)
    limit, tokens = made.needs.limit, made.needs.stored_tokens(options.max_tokens)
    wrong = options.max_tokens is not None and tokens != options.max_tokens
    if wrong or (limit is not None and tokens > limit):
        raise ConfigError(
            f"--max-tokens is {options.max_tokens}, and {made.encoder} takes "
            f"{'exactly' if made.needs.is_fixed else 'at most'} {limit}. Leave it out, or give "
            f"{limit}"
        )
    return made.encoder, tokens


def _image(made: MadeFor | None, options: StorageOptions) -> ImageKnobs | EncoderImageKnobs:
    if made is None:
        size = IMAGE_SIZE if options.image_size is None else options.image_size
        stored_size = stored_size_of(options.image_store, size, options.image_stored_size)
        fit = {} if options.image_fit is None else {"fit": options.image_fit}
        return knobs_of(ImageKnobs, "image-", size=stored_size, **fit)
    assert isinstance(made.needs, ImageNeeds)
    if options.image_store == "jpeg":
        raise ConfigError(
            f"--image-store jpeg and --for image={made.encoder} are both given, and JPEG would "
            "change the pixels that the encoder needs. Leave one of them out"
        )
    _check_free(made, "image", image_size=options.image_size, image_fit=options.image_fit)
    _check_free(made, "image", image_stored_size=options.image_stored_size)
    return EncoderImageKnobs.of(made.needs)


def _sound(made: MadeFor | None, options: StorageOptions) -> SoundKnobs | EncoderSoundKnobs:
    seconds, rate = options.audio_seconds, options.audio_rate
    features = {"feature": options.feature, "coefficients": options.coefficients}
    if made:
        assert isinstance(made.needs, AudioNeeds)
        _check_free(made, "audio", audio_rate=rate, **features)
        if options.audio_store == "waveform" and not made.needs.is_waveform:
            _check_free(made, "audio", audio_store="waveform")
        if made.needs.is_waveform:
            return sound_knobs_for(made.needs, seconds or SECONDS)
        return sound_knobs_for(made.needs, seconds)
    if options.audio_store == "waveform":
        if given := next((name for name, value in features.items() if value is not None), None):
            raise ConfigError(f"--{given} is for features. Leave out it or --audio-store waveform")
        rate = rate or RATE_HZ
        samples = round((seconds or SECONDS) * rate)
        return knobs_of(WaveformKnobs, "audio-", sample_rate_hz=rate, samples=samples)
    if rate is not None:
        raise ConfigError(
            "--audio-rate is for waveforms. Leave it out, or add --audio-store waveform"
        )
    choice("--feature", options.feature or "mfcc", ("mfcc", "log_mel"))
    sound = knobs_of(
        SoundKnobs,
        feature=options.feature or "mfcc",
        coefficients=COEFFICIENTS if options.coefficients is None else options.coefficients,
    )
    frames = max(1, round((seconds or SECONDS) * sound.sample_rate_hz / sound.hop))
    return sound.model_copy(update={"frames": frames})
