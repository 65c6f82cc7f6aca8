"""Weights that were trained elsewhere: whether their files are there and supported, checked before anything starts."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.model_config import ModelConfig

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # whole, or in parts
MAX_CONFIG_BYTES = 50_000_000  # one that names 20,000 classes has 2 MB
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself


class Kind(NamedTuple):
    """What a modality's encoder takes."""

    model_type: str
    prefix: str  # of the classes that `architectures` names
    words: str


KINDS = {
    "text_weights": Kind("bert", "Bert", "BERT"),
    "image_weights": Kind("vit", "ViT", "ViT"),
    "audio_weights": Kind("audio-spectrogram-transformer", "AST", "audio spectrogram transformer"),
}
# Classes of transformers are named <prefix>Model, <prefix>For<Task>, <prefix>LMHeadModel; another
# name says nothing.
_CLASS = re.compile(r"(?:TF|Flax)?(\w+?)(?:LMHead)?(?:PreTrained)?(?:Model|For[A-Z]\w*)")


def check_pretrained(configs: Iterable[ModelConfig], may_lack: bool = False) -> None:
    """Check all weights that configs name: their files are on this machine, whole, and of the encoder's kind.

    Args:
        configs: networks.
        may_lack: whether jobs may find files that this machine does not have.

    Raises:
        ConfigError: a line for each that cannot be used.
    """
    named = {
        (key, name)
        for config in configs
        for modality in config.modalities
        if (name := getattr(config, key := f"{modality}_weights"))
    }
    problems = []
    for key, name in sorted(named):
        try:
            _check(key, name, may_lack)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def check_kind(key: str, name: str) -> None:
    """Raise ConfigError unless the config.json of these weights names a model that the encoder `key` is.

    Weights of a relative, such as RoBERTa, have the same tensors as BERT and would train as BERT.
    """
    wanted, content = KINDS[key], _read_config(key, name)
    found = content.get("model_type")
    if found is None:
        raise ConfigError(
            f'model.{key} {name!r}: {CONFIG} has no model_type. If it is a {wanted.words}, add "model_type": '
            f'"{wanted.model_type}"; else choose other weights'
        )
    if found != wanted.model_type:
        other = next(
            (f"; these are for model.{k}" for k, kind in KINDS.items() if kind.model_type == found),
            "",
        )
        raise ConfigError(
            f"model.{key} {name!r} is of model_type {_short(found)}, which is not supported there. "
            f"Choose weights of a {wanted.words} (model_type {wanted.model_type!r}){other}"
        )
    architectures = content.get("architectures") or []
    if not isinstance(architectures, list) or not all(
        isinstance(one, str) for one in architectures
    ):
        raise ConfigError(
            f"model.{key} {name!r}: architectures in {CONFIG} is {_short(architectures)}, wanted a list"
        )
    for one in architectures:
        match = _CLASS.fullmatch(one)
        if match and match[1] != wanted.prefix:
            raise ConfigError(
                f"model.{key} {name!r}: {CONFIG} has model_type {found!r} and architectures {_short(one)}, which "
                f"contradict each other. Choose other weights, or correct the one that is wrong"
            )


def not_found(key: str, name: str, why: str = "") -> ConfigError:
    """What is said where weights cannot be read; `why`: what a library said of it."""
    what = (
        "has no model that can be read"
        if Path(name).is_dir()
        else "is no folder, and not in the hub's cache"
    )
    return ConfigError(
        f"model.{key} {name!r} {what}{f' ({why})' if why else ''}: runs download nothing; fetch it where there is a "
        f"network (`hf download {name}`), or give the path of a folder with {CONFIG} and {WEIGHTS[0]}"
    )


def find_file(name: str, file: str) -> Path | None:
    """The file of a folder, or of a model in the hub's cache; None: it is not there."""
    if Path(name).is_dir():
        return path if (path := Path(name) / file).is_file() else None
    # half a second, which only studies with weights pay
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file)
    except HFValidationError:  # a path that is not there
        return None
    return Path(cached) if isinstance(cached, str) else None


def _check(key: str, name: str, may_lack: bool) -> None:
    described = find_file(name, CONFIG) is not None
    weights = next((path for file in WEIGHTS if (path := find_file(name, file))), None)
    if not may_lack and (weights is None or not described):
        raise not_found(key, name)
    if described:
        check_kind(key, name)
    if weights is None:
        return
    for part in [weights] if weights.name == WEIGHTS[0] else _parts(key, name, weights):
        if why := _damage(part):
            raise ConfigError(f"model.{key} {name!r}: {part.name} {why}. Fetch it again")


def _read_config(key: str, name: str) -> dict[str, Any]:
    path = find_file(name, CONFIG)
    if path is None:
        raise not_found(key, name)
    content = _read_json(key, name, path)
    if not isinstance(content, dict):
        raise ConfigError(
            f"model.{key} {name!r}: {CONFIG} is {_short(content)}, wanted a JSON object"
        )
    return content


def _read_json(key: str, name: str, path: Path) -> Any:
    try:
        if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"model.{key} {name!r}: {path.name} has {size:,} bytes, more than {MAX_CONFIG_BYTES:,}"
            )
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"model.{key} {name!r}: {path.name} cannot be read: {error.strerror}"
        ) from None
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"model.{key} {name!r}: {path.name} is not JSON ({why}). Fetch it again"
        ) from None


def _parts(key: str, name: str, index: Path) -> list[Path]:
    """The files that an index names."""
    content = _read_json(key, name, index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(files, dict)
        or not files
        or not all(isinstance(file, str) for file in files.values())
    ):
        raise ConfigError(
            f"model.{key} {name!r}: {index.name} has no weight_map of files. Fetch it again"
        )
    parts = {file: find_file(name, file) for file in files.values()}
    if lacking := sorted(file for file, path in parts.items() if path is None):
        raise not_found(key, name, f"{index.name} names {lacking[0]!r}, which is not there")
    return [path for path in parts.values() if path]


def _damage(path: Path) -> str:
    """Why a safetensors file is not whole, from its header and size; empty if it is."""
    try:
        with path.open("rb") as file:
            start, size = file.read(8), path.stat().st_size
            length = int.from_bytes(start, "little")
            if start == b"version ":
                return "is a pointer of git-lfs and holds no weights"
            if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                return "is no safetensors file, or is cut off"
            header = json.loads(file.read(length))
        ends = [
            facts["data_offsets"][1] for tensor, facts in header.items() if tensor != "__metadata__"
        ]
        end = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return "has a header that cannot be read"
    return "" if end == size else f"has {size:,} bytes, and its header describes {end:,}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
