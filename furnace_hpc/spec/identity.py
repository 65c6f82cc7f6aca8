"""Which fields of a config make a run what it is: those that decide numbers.

A field marked `identity: False` changes where or how often something is written, never a number.
"""

import hashlib
import json
from functools import cache
from typing import Any

from pydantic import BaseModel


def identity_hash(config: BaseModel, data_fingerprint: str) -> str:
    """8 hexadecimal digits of SHA-256 over what decides the numbers."""
    content = json.dumps([identity(config), data_fingerprint], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def identity(model: BaseModel) -> dict[str, Any]:
    """The fields of `model` that decide numbers, as plain data, nested."""
    return {name: _plain(getattr(model, name)) for name in _identity_fields(type(model))}


@cache
def _identity_fields(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(name for name, field in model.model_fields.items() if _counts(field.json_schema_extra))


def _counts(extra: Any) -> bool:
    return not (isinstance(extra, dict) and extra.get("identity") is False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
