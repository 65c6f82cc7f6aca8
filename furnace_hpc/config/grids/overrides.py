"""Apply overrides with dotted keys to nested content."""

from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.own_code.references import SECTIONS_OF_PATHS
from furnace_hpc.config.parsing.text_safety import short

MAX_DOTS = 32  # in a dotted key


def apply_overrides(content: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of nested `content` with dotted or nested `overrides`. Lists are replaced as a whole.

    Raises:
        ConfigError: a dotted key leads through a value that is not a mapping.
    """
    result = dict(content)
    for key, value in overrides.items():
        if str(key).count(".") > MAX_DOTS:
            raise ConfigError(
                f"key {short(str(key))!r} has more than {MAX_DOTS} dots. No config is so deep"
            )
        head, rest = split_key(str(key))
        if rest:
            inner = result.get(head, {})
            if not isinstance(inner, dict):
                got = short(repr(inner))
                raise ConfigError(
                    f"key {key!r} leads through {head!r}, which is {got}, wanted a mapping"
                )
            result[head] = apply_overrides(inner, {rest: value})
        elif isinstance(value, dict) and isinstance(result.get(head), dict):
            result[head] = apply_overrides(result[head], value)
        else:
            result[head] = value
    return result


def split_key(key: str) -> tuple[str, str]:
    """The first part of a dotted key, and the rest. The dots of an import path split nothing."""
    if ":" not in key:
        head, _, rest = key.partition(".")
        return head, rest
    for section in SECTIONS_OF_PATHS:
        if key.startswith(f"{section}."):
            return section, key.removeprefix(f"{section}.")
    return key, ""
