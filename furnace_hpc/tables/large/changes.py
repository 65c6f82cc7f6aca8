"""Find the config keys in which rows differ from the reference.

Rows of a grid differ in few sections of the config. Only those are compared key by key.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.identity import identity
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.tables.table import Change, Run

# the runs of a row, and those of the reference -> what differs
FindChanges = Callable[[Sequence[Run], Sequence[Run]], tuple[Change, ...]]


def changed_settings(
    ours: Sequence[Run], theirs: Sequence[Run], tuned: Collection[str] = ()
) -> tuple[Change, ...]:
    """The keys in which two rows differ, without those that were tuned."""
    one, other = ours[0].own_spec, theirs[0].own_spec
    if one is None or other is None:
        return ()
    changes = differences(one.config, other.config)
    return tuple(change for change in changes if not _is_tuned(change.key, tuned))


def differences(config: TrainConfig, reference: TrainConfig) -> tuple[Change, ...]:
    """The dotted identity keys, except the seed, in which two configs differ.

    A missing key is None.
    """
    fields = _unequal_fields(config, reference)
    return changes_of(flat_identity(config, fields), flat_identity(reference, fields))


def changes_of(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Change, ...]:
    """The keys, except the seed, whose values differ. A missing key is None."""
    return tuple(
        Change(key, theirs.get(key), ours.get(key))
        for key in theirs | ours
        if key != "seed" and theirs.get(key) != ours.get(key)
    )


def settings_of(runs: Sequence[Run], tuned: Collection[str] = ()) -> dict[str, Any]:
    """Dotted key -> value of a row's config, without the keys that were tuned."""
    spec = runs[0].own_spec
    if spec is None:
        return {}
    values = flat_identity(spec.config)
    return {key: value for key, value in values.items() if not _is_tuned(key, tuned)}


def flat_identity(config: TrainConfig, fields: Collection[str] | None = None) -> dict[str, Any]:
    """Dotted key -> value. The pack's seed is left out, because `data.name` names the pack.

    Sources of weights are in words, because their entries have long hashes.

    Args:
        config: the config.
        fields: leave out the others. None: leave out none.
    """
    values = flatten(identity(config, fields), enter_lists=True)
    values.pop("pack_seed", None)
    values = {key: value for key, value in values.items() if key.partition(".")[0] != "init_from"}
    if config.init_from and (fields is None or "init_from" in fields):
        values["init_from"] = "; ".join(map(str, config.init_from))
    return values


def _unequal_fields(one: TrainConfig, other: TrainConfig) -> Collection[str] | None:
    """The fields with other values. None for all: a config with epochs has no key `steps`."""
    if one.epochs is not None or other.epochs is not None:
        return None
    theirs = vars(other)
    return {name for name, value in vars(one).items() if value != theirs[name]}


def _is_tuned(key: str, tuned: Collection[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in tuned)
