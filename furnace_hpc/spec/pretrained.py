"""Weights that were trained elsewhere: whether their files are there, looked at before anything is submitted."""

from collections.abc import Iterable
from pathlib import Path

from furnace_hpc.spec.errors import ConfigError
from furnace_hpc.spec.model_config import ModelConfig

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # whole, or in parts


def check_pretrained(configs: Iterable[ModelConfig]) -> None:
    """Raise ConfigError unless all weights that configs name have their files on this machine."""
    named = {
        (key, name)
        for config in configs
        for modality in config.modalities
        if (name := getattr(config, key := f"{modality}_weights"))
    }
    for key, name in sorted(named):
        if not (find_file(name, CONFIG) and any(find_file(name, file) for file in WEIGHTS)):
            raise not_found(key, name)


def not_found(key: str, name: str, why: str = "") -> ConfigError:
    """What is said where weights cannot be read; `why`: what a library said of it."""
    what = "has no model that can be read" if Path(name).is_dir() else "is no folder, and not in the hub's cache"
    return ConfigError(
        f"model.{key} {name!r} {what}{f' ({why})' if why else ''}: runs download nothing; fetch it where there is a "
        f"network (`hf download {name}`), or give the path of a folder with {CONFIG} and {WEIGHTS[0]}"
    )


def find_file(name: str, file: str) -> Path | None:
    """The file of a folder, or of a model in the hub's cache; None: it is not there."""
    if Path(name).is_dir():
        return path if (path := Path(name) / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache  # half a second, which only studies with weights pay
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file)
    except HFValidationError:  # a path that is not there
        return None
    return Path(cached) if isinstance(cached, str) else None
