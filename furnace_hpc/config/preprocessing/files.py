"""Read the tokenizer and preprocessor files of an encoder. Nothing is downloaded or executed."""

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.pretrained_files import CONFIG, find_file
from furnace_hpc.host.regular_file import read_regular

MAX_BYTES = 200_000_000  # five times the largest tokenizers of multilingual models
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # it may have the settings of several preprocessors
IMAGE_PROCESSOR, FEATURE_EXTRACTOR = "image_processor", "feature_extractor"


class Needs(BaseModel, ABC):
    """What an encoder needs of one modality. Subclasses have the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def describe(self) -> str:
        """Return the settings in a few words, for messages."""


def bad_file(name: str, problem: str, fix: str) -> ConfigError:
    """Return the error for an encoder whose files cannot be used."""
    return ConfigError(f"encoder {name!r}: {problem}. {fix}")


def not_there(name: str) -> ConfigError:
    """Return the error for an encoder that is neither a folder nor in the hub's cache."""
    return bad_file(
        name,
        "is neither a folder nor in the hub's cache",
        f"Fetch it on a machine with a network (`hf download {name}`), or give a folder",
    )


def read_json(name: str, file: str) -> dict[str, Any] | None:
    """Read a JSON file of an encoder. None if there is no such file.

    Raises:
        ConfigError: it cannot be read, or is no JSON object.
    """
    path = find_file(name, file)
    if path is None:
        return None
    try:
        content = json.loads(read_regular(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:100]
        raise bad_file(name, f"{file} cannot be read ({why})", "Fetch it again") from None
    if not isinstance(content, dict):
        raise bad_file(name, f"{file} is no JSON object", "Fetch it again")
    return content


def model_type(name: str) -> str:
    """Return the `model_type` of an encoder's config.json. Empty if there is none."""
    return str((read_json(name, CONFIG) or {}).get("model_type", ""))


def preprocessor_settings(name: str, part: str) -> dict[str, Any] | None:
    """Return the settings of the image processor or feature extractor. None if there are none.

    As in transformers, processor_config.json goes before preprocessor_config.json.
    """
    nested = (read_json(name, PROCESSOR) or {}).get(part)
    if isinstance(nested, dict):
        return nested
    return read_json(name, PREPROCESSOR)


def file_hashes(name: str, files: tuple[str, ...]) -> dict[str, str]:
    """Return file -> SHA-256 of the files that exist."""
    found = {file: path for file in files if (path := find_file(name, file))}
    return {
        file: hashlib.sha256(read_regular(path, MAX_BYTES)).hexdigest()
        for file, path in found.items()
    }


def short_name(name: str) -> str:
    """Return the name for a manifest: of a folder its last part, so that it may be moved."""
    return Path(name).resolve().name if Path(name).is_dir() else name
