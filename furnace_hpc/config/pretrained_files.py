"""Check pretrained weights: their files exist, are complete and are supported."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from furnace_hpc.config.encoder_families import FAMILIES, Family, family_of, is_trained
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.sections.model import ModelConfig

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # one file, or an index of parts
MAX_CONFIG_BYTES = 50_000_000  # a config with 20,000 class names has 2 MB
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors


class Kind(NamedTuple):
    """The weights that a modality's encoder accepts."""

    model_type: str
    prefix: str  # of the class names in `architectures`
    label: str  # in messages


KINDS = {
    "text_weights": Kind("bert", "Bert", "BERT"),
    "image_weights": Kind("vit", "ViT", "ViT"),
    "audio_weights": Kind("audio-spectrogram-transformer", "AST", "audio spectrogram transformer"),
}
# Classes of transformers have names like <prefix>Model, <prefix>For<Task>, <prefix>LMHeadModel.
# Other names are not checked.
_CLASS = re.compile(r"(?:TF|Flax)?(\w+?)(?:LMHead)?(?:PreTrained)?(?:Model|For[A-Z]\w*)")


def check_pretrained(configs: Iterable[ModelConfig], may_lack: bool = False) -> None:
    """Check all weights that configs name: the files exist, are complete and of the encoder's kind.

    Args:
        configs: networks.
        may_lack: whether jobs may find files that are missing on this machine.

    Raises:
        ConfigError: a line for each problem.
    """
    problems = []
    for key, name in sorted(named_weights(configs)):
        try:
            _check(key, name, may_lack)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def named_weights(configs: Iterable[ModelConfig]) -> set[tuple[str, str]]:
    """(key, name) of all weights, such as ("text_weights", "bert-base-uncased").

    The key of a trained encoder is "text.encoder".
    """
    named = set()
    for config in configs:
        for modality in config.modalities:
            section = getattr(config, modality, None)  # numbers have no trained weights
            if name := getattr(config, f"{modality}_weights", None):
                named.add((f"{modality}_weights", name))
            elif section and section.encoder and is_trained(section.encoder):
                named.add((f"{modality}.encoder", section.encoder))
    return named


def check_encoder(modality: str, name: str, content: dict[str, Any] | None = None) -> Family:
    """Find the family of a trained encoder by its config.json.

    Args:
        modality: what the encoder is to read.
        name: folder or name in the hub's cache.
        content: of config.json. None reads the file.

    Raises:
        ConfigError: config.json cannot be read, or describes no encoder of this modality.
    """
    key = f"{modality}.encoder"
    if content is None:
        content = _read_config(key, name)
    found = content.get("model_type")
    family = family_of(modality, found) if isinstance(found, str) else None
    if family is None:
        raise _error(key, name, *_wrong_family(modality, found))
    architectures = content.get("architectures") or []
    if not _is_list_of_text(architectures):
        got = f"architectures in {CONFIG} is {_short(architectures)}, wanted a list of text"
        raise _error(key, name, got, "Correct it")
    stem = re.sub("(Text|Vision|Audio)?(Model|Encoder)$", "", family.network)
    for one in architectures:
        match = _CLASS.fullmatch(one)
        if match and not match[1].startswith(stem):
            raise _error(
                key,
                name,
                f"model_type {found!r} and architectures {_short(one)} of {CONFIG} contradict each "
                f"other",
                "Choose other weights, or correct the wrong one",
            )
    return family


def _wrong_family(modality: str, found: object) -> tuple[str, str]:
    """The problem and its fix, if a model_type has no encoder of the modality."""
    supported = [family for family in FAMILIES.values() if family.modality == modality]
    types = ", ".join(sorted({name for family in supported for name in family.model_types}))
    choose = f"Choose weights of one of these: {types}"
    if found is None:
        return f"{CONFIG} has no model_type", choose
    others = [family for family in FAMILIES.values() if found in family.model_types]
    if others:
        is_a = " or ".join(family.label for family in others)
        keys = " or ".join(f"model.{family.modality}.encoder" for family in others)
        problem = f"model_type {_short(found)} is {is_a}, which does not encode {modality}"
        return problem, f"Use it for {keys}, or choose other weights"
    return f"model_type {_short(found)} is not a supported {modality} encoder", choose


def weight_names(name: str) -> list[str]:
    """Names of all weights in the safetensors files, from their headers."""
    found = [path for file in WEIGHTS if (path := find_file(name, file))]
    if not found:
        return []
    if found[0].name != WEIGHTS[0]:
        return list(json.loads(found[0].read_bytes())["weight_map"])
    with found[0].open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [key for key in header if key != "__metadata__"]


def check_kind(key: str, name: str) -> None:
    """Raise ConfigError unless config.json of these weights names the model of the encoder `key`.

    Weights of a related model, such as RoBERTa, have the tensors of BERT and would train as BERT.
    """
    wanted, content = KINDS[key], _read_config(key, name)
    found = content.get("model_type")
    if found is None:
        raise _error(
            key,
            name,
            f"{CONFIG} has no model_type",
            f'If it is a {wanted.label}, add "model_type": "{wanted.model_type}". Otherwise choose '
            f"other weights",
        )
    if found != wanted.model_type:
        fitting = [other for other, kind in KINDS.items() if kind.model_type == found]
        use = f", or use these for model.{fitting[0]}" if fitting else ""
        raise _error(
            key,
            name,
            f"model_type {_short(found)} is not supported for this key",
            f"Choose weights of model_type {wanted.model_type!r} ({wanted.label}){use}",
        )
    architectures = content.get("architectures") or []
    if not _is_list_of_text(architectures):
        got = f"architectures in {CONFIG} is {_short(architectures)}, wanted a list of text"
        raise _error(key, name, got, "Correct it")
    for one in architectures:
        match = _CLASS.fullmatch(one)
        if match and match[1] != wanted.prefix:
            raise _error(
                key,
                name,
                f"model_type {found!r} and architectures {_short(one)} of {CONFIG} contradict each "
                f"other",
                "Choose other weights, or correct the wrong one",
            )


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def not_found(key: str, name: str, why: str = "") -> ConfigError:
    """The error for weights that cannot be read. `why` is the reason that a library gave."""
    problem = "is not a folder, and not in the hub's cache"
    if Path(name).is_dir():
        problem = "has no model that can be read"
    if why:
        problem += f" ({why})"
    return ConfigError(
        f"model.{key} {name!r} {problem}. Runs download nothing. Fetch it on a machine with a "
        f"network (`hf download {name}`), or give the path of a folder with {CONFIG} and "
        f"{WEIGHTS[0]}"
    )


def _error(key: str, name: str, problem: str, fix: str = "Fetch it again") -> ConfigError:
    return ConfigError(f"model.{key} {name!r}: {problem}. {fix}")


def find_file(name: str, file: str) -> Path | None:
    """Path of a file of a folder, or of a model in the hub's cache. None if it is missing."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    # Importing it takes half a second, so only grids with weights import it.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file)
    except HFValidationError:  # a path that does not exist
        return None
    return Path(cached) if isinstance(cached, str) else None


def files_of(name: str) -> list[Path]:
    """The files of trained weights that decide numbers: config.json and all parts of the weights.

    Empty if one of them is missing.

    Raises:
        ConfigError: the index of parts cannot be read.
    """
    described = find_file(name, CONFIG)
    found = [path for file in WEIGHTS if (path := find_file(name, file))][:1]
    if described is None or not found:
        return []
    if found[0].name != WEIGHTS[0]:
        found += _parts("encoder", name, found[0])
    return [described, *found]


def revision_of(name: str) -> str:
    """The revision of a model in the hub's cache that is read. Empty for a folder."""
    path = None if Path(name).is_dir() else find_file(name, CONFIG)
    return path.parent.name if path else ""


def _check(key: str, name: str, may_lack: bool) -> None:
    has_config = find_file(name, CONFIG) is not None
    found = [path for file in WEIGHTS if (path := find_file(name, file))]
    if not may_lack and not (found and has_config):
        raise not_found(key, name)
    if has_config and key in KINDS:
        check_kind(key, name)
    elif has_config:
        check_encoder(key.removesuffix(".encoder"), name)
    if not found:
        return
    parts = found[:1]
    if found[0].name != WEIGHTS[0]:
        parts = _parts(key, name, found[0])
    for part in parts:
        if problem := _damage(part):
            raise _error(key, name, f"{part.name} {problem}")


def _read_config(key: str, name: str) -> dict[str, Any]:
    path = find_file(name, CONFIG)
    if path is None:
        raise not_found(key, name)
    content = _read_json(key, name, path)
    if not isinstance(content, dict):
        raise _error(key, name, f"{CONFIG} is {_short(content)}, wanted a JSON object")
    return content


def _read_json(key: str, name: str, path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size <= MAX_CONFIG_BYTES:
            return json.loads(path.read_bytes())
    except OSError as error:
        problem = f"{path.name} cannot be read: {error.strerror}"
        raise _error(key, name, problem, "Check its permissions") from None
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:100]
        raise _error(key, name, f"{path.name} is not JSON ({why})") from None
    raise _error(key, name, f"{path.name} has {size:,} bytes, more than {MAX_CONFIG_BYTES:,}")


def _parts(key: str, name: str, index: Path) -> list[Path]:
    """The files that an index lists."""
    content = _read_json(key, name, index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not _is_list_of_text([*files.values()]):
        raise _error(key, name, f"{index.name} has no weight_map of files")
    parts = []
    for file in sorted(set(files.values())):
        path = find_file(name, file)
        if path is None:
            raise not_found(key, name, f"{index.name} lists {file!r}, which is missing")
        parts.append(path)
    return parts


def _damage(path: Path) -> str:
    """Why a safetensors file is not complete, from its header and size. Empty if it is."""
    try:
        with path.open("rb") as file:
            start, size = file.read(8), path.stat().st_size
            length = int.from_bytes(start, "little")
            if start == b"version ":
                return "is a pointer of git-lfs and contains no weights"
            if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                return "is not a safetensors file, or is cut off"
            header = json.loads(file.read(length))
        ends = [
            facts["data_offsets"][1] for tensor, facts in header.items() if tensor != "__metadata__"
        ]
        end = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return "has a header that cannot be read"
    if end == size:
        return ""
    return f"has {size:,} bytes, and its header describes {end:,}"


def _short(value: Any) -> str:
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{text[:60]}..."
