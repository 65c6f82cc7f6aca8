"""The record of a pack: for which encoder each modality was made (`pack --for`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import ValidationError

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.preprocessing.audio import AudioNeeds, audio_files, audio_needs
from furnace_hpc.config.preprocessing.files import Needs, not_there, short_name
from furnace_hpc.config.preprocessing.image import ImageNeeds, image_files, image_needs
from furnace_hpc.config.preprocessing.text import TextNeeds, text_files, text_needs
from furnace_hpc.config.pretrained_files import CONFIG, find_file

RECORD = "for"  # key in the `preprocessing` of a manifest


class _Kind(NamedTuple):
    needs: Callable[[str], Needs | None]
    files: Callable[[str], dict[str, str]]
    type: type[Needs]
    wanted: str


_KINDS: dict[str, _Kind] = {
    "text": _Kind(text_needs, text_files, TextNeeds, "tokenizer.json"),
    "image": _Kind(image_needs, image_files, ImageNeeds, "preprocessor_config.json"),
    "audio": _Kind(audio_needs, audio_files, AudioNeeds, "preprocessor_config.json"),
}


class MadeFor(NamedTuple):
    """The encoder that a modality is packed for."""

    encoder: str
    """Folder, or name in the hub's cache, as it was given."""
    needs: Needs
    files: dict[str, str]
    """File -> SHA-256."""

    @property
    def record(self) -> dict[str, Any]:
        """The entry of a manifest. It does not depend on where the folder is."""
        return {
            "encoder": short_name(self.encoder),
            "needs": self.needs.model_dump(mode="json"),
            "files": self.files,
        }


def needs_of(modality: str, name: str) -> Needs | None:
    """Return what an encoder needs of a modality. None if its files do not say it.

    Raises:
        ConfigError: a file cannot be read, or the kind of preprocessing is not supported.
    """
    if modality not in _KINDS:
        return None
    return _KINDS[modality].needs(name)


def made_for(modality: str, name: str) -> MadeFor:
    """Return what a pack for this encoder needs.

    Raises:
        ConfigError: the encoder or its preprocessing files are missing, or not supported.
    """
    kind = _KINDS[modality]
    needs = kind.needs(name)
    if needs is None:
        files = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
        if not any(find_file(name, file) for file in (CONFIG, *files)):
            raise not_there(name)
        raise ConfigError(
            f"--for {modality}={name}: the encoder has no {kind.wanted} for {modality}. Fetch all "
            "its files, or choose another encoder"
        )
    return MadeFor(name, needs, kind.files(name))


def parse_for(given: list[str] | None) -> dict[str, MadeFor]:
    """Parse `--for MODALITY=ENCODER` options. Return modality -> encoder.

    Raises:
        ConfigError: one is malformed, repeated, or its encoder cannot be used.
    """
    found: dict[str, MadeFor] = {}
    for text in given or ():
        modality, equals, name = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--for {text!r} is not MODALITY=ENCODER, such as text=roberta-base")
        if modality not in _KINDS:
            raise ConfigError(f"--for {text!r}: {nearest(modality, _KINDS)}")
        if modality in found:
            raise ConfigError(
                f"--for {modality}=... is given twice. Give one encoder of a modality"
            )
        found[modality] = made_for(modality, name)
    return found


def recorded(manifest: Manifest, modality: str) -> Needs | None:
    """Return what a modality of a pack was made for. None if the manifest has no such record."""
    entry = manifest.preprocessing.get(RECORD, {})
    if not isinstance(entry, dict) or not isinstance(entry.get(modality), dict):
        return None
    try:
        return _KINDS[modality].type.model_validate(entry[modality].get("needs"))
    except ValidationError:
        return None


def recorded_encoder(manifest: Manifest, modality: str) -> str:
    """Return the name of the encoder that a modality was packed for. Empty if there is none."""
    entry = manifest.preprocessing.get(RECORD, {})
    if not isinstance(entry, dict) or not isinstance(entry.get(modality), dict):
        return ""
    return str(entry[modality].get("encoder", ""))
