"""Which keys `--set` must leave alone: those that make rows differ, or rows would train under wrong names."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from furnace_hpc.spec.errors import ConfigError


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
    for key, value in settings.items():
        own = list(leaves({key: value}))
        for section, columns in swept:
            for other, values in columns.items():
                if any(_overlap(own, list(leaves({other: one}))) for one in values):
                    which = "this key" if other == key else repr(other)
                    raise ConfigError(
                        f"--set {key}: the grid sweeps {which} under {section}, and rows would train under wrong "
                        f"names: narrow its {'axis' if section == 'axes' else 'lists'} in a copy of the grid file"
                    )
        for row, overrides in rows.items():
            for other in leaves(overrides):
                if not _overlap([other], not_identity, below=True) and _overlap(own, [other]):
                    which = "this key" if other == key else repr(other)
                    raise ConfigError(
                        f"--set {key}: row {row!r} sets {which}, and would train under a wrong name: "
                        f"change the row in a copy of the grid file"
                    )


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a mapping that may be nested."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _overlap(ones: Iterable[str], others: Iterable[str], below: bool = False) -> bool:
    """Whether two keys are the same or one is below the other; with `below`, one of the first below a second."""
    return any(f"{a}.".startswith(f"{b}.") or (not below and f"{b}.".startswith(f"{a}.")) for a in ones for b in others)
