"""The settings that decide the columns of a pack of a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from furnace_hpc.config.manifest import Statistics
from furnace_hpc.config.preprocessing.image import ImageNeeds
from furnace_hpc.config.preprocessing.record import MadeFor
from furnace_hpc.config.preprocessing.text import TextNeeds
from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.for_encoder.images import EncoderImageKnobs
from furnace_hpc.data.decode.for_encoder.sounds import EncoderSoundKnobs
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.decode.word_tokenizer import WORDS


@dataclass(frozen=True)
class Knobs:
    """The settings that decide the columns of a pack."""

    image: ImageKnobs | EncoderImageKnobs
    sound: SoundKnobs | EncoderSoundKnobs
    tokenizer: str
    max_tokens: int
    made_for: Mapping[str, MadeFor] = field(default_factory=dict)
    """Modality -> the encoder whose preprocessing is used."""

    @property
    def uses_own_words(self) -> bool:
        """Whether the tokenizer is made from the words of the table."""
        return self.tokenizer == WORDS and "text" not in self.made_for

    @property
    def text_needs(self) -> TextNeeds | None:
        """What the text encoder needs. None if texts are packed for no encoder."""
        made = self.made_for.get("text")
        return made.needs if made and isinstance(made.needs, TextNeeds) else None

    def statistics(self, modalities: tuple[str, ...]) -> dict[str, Statistics]:
        """Return modality -> mean and deviation that an encoder prescribes."""
        found = {}
        image = self.made_for.get("image")
        if "image" in modalities and image and isinstance(image.needs, ImageNeeds):
            mean, std = image.needs.stored_mean_std
            found["image"] = Statistics(mean=mean, std=std)
        if "audio" in modalities and (prescribed := self.sound.statistics):
            found["audio"] = prescribed
        return found
