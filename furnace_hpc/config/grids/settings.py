"""Which keys `--set` must leave alone: those that make rows differ, or rows would train under wrong names."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from furnace_hpc.config.errors import ConfigError


def check_settings(
    settings: Mapping[str, Any],
    swept: Sequence[tuple[str, Mapping[str, Sequence[Any]]]],
    rows: Mapping[str, Mapping[str, Any]],
    not_identity: frozenset[str],
) -> None:
    """Refuse settings that would overwrite what a sweep or a row sets.

    Args:
        settings: key -> value, as `--set` gives them.
        swept: (`axes` or `zip`, dotted key -> values).
        rows: row -> overrides.
        not_identity: keys that a row may set and `--set` may overwrite, since they change no number.

    Raises:
        ConfigError: a setting and a sweep, or a row, share a key.
    """
    own = {leaf: key for key, value in settings.items() for leaf in leaves({key: value})}
    above = {part: key for leaf, key in own.items() for part in _parents(leaf)}
    for section, columns in swept:
        for other, leaf in (
            (key, leaf)
            for key, values in columns.items()
            for one in values
            for leaf in leaves({key: one})
        ):
            if key := _shared(leaf, own, above):
                raise ConfigError(
                    f"--set {key}: the grid sweeps {'this key' if other == key else repr(other)} under {section}, and "
                    f"rows would train under wrong names: narrow it in a copy of the grid file"
                )
    for row, overrides in rows.items():
        for leaf in leaves(overrides):
            if not not_identity.isdisjoint(_parents(leaf)):
                continue
            if key := _shared(leaf, own, above):
                raise ConfigError(
                    f"--set {key}: row {row!r} sets {'this key' if leaf == key else repr(leaf)}, and would train under "
                    f"a wrong name: change the row in a copy of the grid file"
                )


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a mapping that may be nested."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _shared(leaf: str, own: Mapping[str, str], above: Mapping[str, str]) -> str | None:
    """The setting of the same key as `leaf`, of one above it or of one below it. None if there is none."""
    return above.get(leaf) or next((own[part] for part in _parents(leaf) if part in own), None)


def _parents(leaf: str) -> Iterator[str]:
    """The dotted key and all that are above it: `a.b`, `a`."""
    yield leaf
    while "." in leaf:
        leaf = leaf.rpartition(".")[0]
        yield leaf
