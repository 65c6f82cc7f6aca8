"""Check that `--set` does not change keys that make rows differ. Row names would be wrong."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.flatten import flatten

Sweep = tuple[str, Mapping[str, Sequence[Any]]]  # (`axes` or `zip`, dotted key -> values)


def check_settings(
    settings: Mapping[str, Any],
    sweeps: Sequence[Sweep],
    rows: Mapping[str, Mapping[str, Any]],
    not_identity: frozenset[str],
) -> None:
    """Refuse settings that would overwrite what a sweep or a row sets.

    Args:
        settings: key -> value, from `--set`.
        sweeps: the `axes` of a grid and each group of its `zip`.
        rows: row -> overrides.
        not_identity: keys that `--set` may overwrite in a row, because they change no number.

    Raises:
        ConfigError: a setting shares a key with a sweep or a row.
    """
    if not settings:
        return
    setting_of = {leaf: key for key, value in settings.items() for leaf in flatten({key: value})}
    # a setting of `loss.alpha` also meets a row that sets `loss`
    setting_below = {part: key for leaf, key in setting_of.items() for part in _and_parents(leaf)}

    def shared(leaf: str) -> str | None:
        """Find the setting of `leaf`, of a key above it or of a key below it."""
        if leaf in setting_below:
            return setting_below[leaf]
        return next((setting_of[part] for part in _and_parents(leaf) if part in setting_of), None)

    for section, key, leaf in _swept(sweeps):
        if setting := shared(leaf):
            swept = "this key" if key == setting else repr(key)
            raise ConfigError(
                f"--set {setting}: the grid sweeps {swept} under {section}, so rows would have "
                f"wrong names. Change the sweep in a copy of the grid file"
            )
    for row, overrides in rows.items():
        for leaf in flatten(overrides):
            if not not_identity.isdisjoint(_and_parents(leaf)):
                continue
            if setting := shared(leaf):
                own = "this key" if leaf == setting else repr(leaf)
                raise ConfigError(
                    f"--set {setting}: row {row!r} sets {own}, so it would have a wrong name. "
                    f"Change the row in a copy of the grid file"
                )


def _swept(sweeps: Sequence[Sweep]) -> Iterator[tuple[str, str, str]]:
    """(section, key, dotted key of each value that is swept)."""
    for section, columns in sweeps:
        for key, values in columns.items():
            for value in values:
                for leaf in flatten({key: value}):
                    yield section, key, leaf


def _and_parents(leaf: str) -> Iterator[str]:
    """A dotted key and all keys above it: `a.b`, `a`."""
    yield leaf
    while "." in leaf:
        leaf = leaf.rpartition(".")[0]
        yield leaf
