"""The identity of a run: a hash of the fields that decide its numbers.

A field marked `identity: False` changes where or how often something is written, never a number.
A field marked `identity: unless default` was added after runs existed. Hashes leave it out while it
has its default.
A field marked `identity: unless epochs` is left out if the field `epochs` is given, because it
follows from that field and the data.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel


def identity_hash(config: BaseModel, data_fingerprint: str) -> str:
    """8 hexadecimal digits of SHA-256 over the fields that decide the numbers, and the data."""
    return identity_sha256(config, data_fingerprint)[:8]


def identity_sha256(config: BaseModel, data_fingerprint: str) -> str:
    """All digits of the hash of which `identity_hash` has the first 8."""
    content = _json([_hashed(config), data_fingerprint])
    return hashlib.sha256(content.encode()).hexdigest()


_newest: dict[tuple[Any, ...], tuple[BaseModel, str]] = {}  # what the last call has written


def seeded_hashes(configs: Sequence[BaseModel], data_fingerprints: Sequence[str]) -> list[str]:
    """`identity_hash` of many configs.

    Neighbours that differ only in the seed are written as JSON once, and so are configs of which
    the last call had another seed or other data. A section that neighbours share is read once.
    This saves most of the time.
    """
    global _newest
    hashes, known = list[str](), dict[tuple[Any, ...], tuple[BaseModel, str]]()
    before: tuple[Any, ...] = ()
    start = end = ""
    newest: dict[type, tuple[BaseModel, dict[str, Any]]] = {}  # class -> section and its content

    def of_section(section: BaseModel) -> dict[str, Any]:
        same = newest.get(type(section))
        if same is None or same[0] is not section:
            same = newest[type(section)] = section, _hashed(section)
        return same[1]

    for config, fingerprint in zip(configs, data_fingerprints, strict=True):
        # equal keys: all fields but the seed are the same objects, as in a copy
        fields = vars(config)
        key = type(config), *[id(value) for name, value in fields.items() if name != "seed"]
        if key != before:
            if key not in _newest:
                _newest[key] = config, _json(_hashed(config, of_section) | {"seed": _SEED})
            known[key] = _newest[key]
            start, end = known[key][1].split(_json(_SEED))
            before = key
        text = f"[{start}{_json(fields['seed'])}{end},{_json(fingerprint)}]"
        hashes.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    _newest = known
    return hashes


_PLAIN = frozenset({bool, int, float, str, type(None)})
_SEED = "\0seed"  # no text of a config contains a zero byte
_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def identity(model: BaseModel, only: Collection[str] | None = None) -> dict[str, Any]:
    """The fields of `model` that decide numbers, as plain data, nested.

    Args:
        model: a config or a section.
        only: leave out the other fields of `model`. None: leave out none.
    """
    values = vars(model)
    return {
        name: _plain(values[name], identity)
        for name in _deciding_fields(model)
        if only is None or name in only
    }


def _hashed(
    model: BaseModel, of_section: Callable[[BaseModel], Any] | None = None
) -> dict[str, Any]:
    """Like `identity`, without the fields that were added later and have their default.

    Args:
        model: a config or a section.
        of_section: what stands for a section of `model`. None: its fields, in the same way.
    """
    values, later, found = vars(model), _added_later(type(model)), dict[str, Any]()
    for name in _deciding_fields(model):
        value = values[name]
        if name in later and (value is later[name] or value == later[name]):
            continue
        if value.__class__ not in _PLAIN:
            value = _plain(value, of_section or _hashed)
        found[name] = value
    return found


def _deciding_fields(model: BaseModel) -> tuple[str, ...]:
    """The fields that decide numbers, without those that follow from others."""
    names, derived = _identity_fields(type(model)), _from_epochs(type(model))
    if not derived or getattr(model, "epochs", None) is None:
        return names
    return tuple(name for name in names if name not in derived)


@cache
def _from_epochs(model: type[BaseModel]) -> frozenset[str]:
    fields = model.model_fields.items()
    return frozenset(
        name for name, field in fields if _mark(field.json_schema_extra) == "unless epochs"
    )


@cache
def _identity_fields(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(
        name
        for name, field in model.model_fields.items()
        if _mark(field.json_schema_extra) is not False
    )


@cache
def _added_later(model: type[BaseModel]) -> dict[str, Any]:
    """Field -> default."""
    fields = model.model_fields.items()
    return {
        name: field.default
        for name, field in fields
        if _mark(field.json_schema_extra) == "unless default"
    }


def without_identity(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the fields that decide no number."""
    for name, field in model.model_fields.items():
        if _mark(field.json_schema_extra) is False:
            yield f"{prefix}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from without_identity(field.annotation, f"{prefix}{name}.")


def _mark(extra: Any) -> Any:
    if isinstance(extra, dict):
        return extra.get("identity")
    return None


def _plain(value: Any, of_model: Callable[[BaseModel], Any]) -> Any:
    if value.__class__ in _PLAIN:  # most values; the other checks are slower
        return value
    if isinstance(value, BaseModel):
        return of_model(value)
    if isinstance(value, tuple):
        return [_plain(item, of_model) for item in value]
    return value
