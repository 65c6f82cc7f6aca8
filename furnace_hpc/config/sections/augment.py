"""The section `augment`: random changes of the samples of the train split."""

from pydantic import Field

from furnace_hpc.config.base import Config


class ImageAugmentation(Config):
    """Random changes of images, in the order crop, flip, colour."""

    crop: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="smallest area of a random crop, as a fraction of the image. The crop is "
        "resized to the size of the input [no crop]",
    )
    flip: float = Field(
        default=0.0, ge=0, le=1, description="probability that left and right are exchanged"
    )
    colour: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="brightness, contrast and saturation are multiplied by factors between 1 - "
        "colour and 1 + colour. For images of 8 bits",
    )

    @property
    def is_on(self) -> bool:
        """Whether images are changed."""
        return bool(self.crop < 1 or self.flip or self.colour)


class AudioAugmentation(Config):
    """Random changes of sounds within their valid frames, in the order gain, noise, masks."""

    gain_db: float = Field(
        default=0.0,
        ge=0,
        description="largest change of the level in dB, up or down. For MFCC and log-mel",
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        description="deviation of Gaussian noise, relative to that of each coefficient",
    )
    time_mask: int = Field(
        default=0, ge=0, description="SpecAugment: largest width of a time mask in frames"
    )
    time_masks: int = Field(default=1, ge=1, description="SpecAugment: number of time masks")
    time_mask_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="SpecAugment: largest width of a time mask as a fraction of the valid frames",
    )
    frequency_mask: int = Field(
        default=0,
        ge=0,
        description="SpecAugment: largest width of a frequency mask in coefficients",
    )
    frequency_masks: int = Field(
        default=1, ge=1, description="SpecAugment: number of frequency masks"
    )

    @property
    def is_on(self) -> bool:
        """Whether sounds are changed."""
        return bool(self.gain_db or self.noise or self.time_mask or self.frequency_mask)


class TextAugmentation(Config):
    """Random changes of texts."""

    token_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a token is replaced by [MASK], or by [UNK] if the tokenizer "
        "has no [MASK]. Special tokens and padding stay",
    )

    @property
    def is_on(self) -> bool:
        """Whether texts are changed."""
        return self.token_dropout > 0


class AugmentConfig(Config):
    """Random changes of the samples of the train split. They depend on seed, epoch and sample."""

    image: ImageAugmentation = ImageAugmentation()
    audio: AudioAugmentation = AudioAugmentation()
    text: TextAugmentation = TextAugmentation()
    mixup: float = Field(
        default=0.0,
        ge=0,
        description="mixup: parameter of the Beta distribution of the weights with which the "
        "encoders' outputs and the losses of two samples of a micro-batch are mixed [off]",
    )

    @property
    def is_on(self) -> bool:
        """Whether samples are changed or mixed."""
        return bool(self.modalities or self.mixup)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are changed."""
        are_on = {
            "image": self.image.is_on,
            "audio": self.audio.is_on,
            "text": self.text.is_on,
        }
        return tuple(name for name, is_on in are_on.items() if is_on)


def check_cached_features(augment: AugmentConfig, cached: tuple[str, ...]) -> None:
    """Raise ValueError if a modality is changed at random and its features are stored once."""
    if found := [name for name in augment.modalities if name in cached]:
        raise ValueError(
            f"model.{found[0]}.cache_features stores one output per sample, and augment."
            f"{found[0]} changes the samples in each epoch. Remove one of them"
        )
