"""The key `tune` of a grid: every row gets the same number of trials, with the same values.

Random search needs no history. So all trials are known before the first one starts. The values of a
trial depend only on its number and the names of the keys: not on the row, on the order of rows or
keys, on the number of trials, or on the name of the grid. Rows therefore differ in nothing but
themselves, and more trials keep the earlier ones.
"""

import hashlib
import json
from collections.abc import Sequence
from math import exp, floor, log, prod
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from furnace_hpc.config.base import Config, Seed, no_duplicates, number
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.flatten import flatten
from furnace_hpc.config.identity import without_identity
from furnace_hpc.config.metrics import checked_direction
from furnace_hpc.config.parsing.plural import counted
from furnace_hpc.config.parsing.text_safety import short
from furnace_hpc.config.train_config import TrainConfig

DIGITS = 4  # significant, of a drawn number: a table can print it, and libm's last bit is cut off
MAX_DRAWS = 100  # per trial, until its values differ from those of earlier trials
NOT_TUNABLE = ("seed", "pack_seed", "data", "tasks", "evaluation", "resources")

_Float = Annotated[float, BeforeValidator(number)]
_Whole = Annotated[int, BeforeValidator(number)]
_Floats = tuple[_Float, _Float]
_Wholes = tuple[_Whole, _Whole]
Values = dict[str, Any]  # dotted key -> value


class Search(Config):
    """The distribution of one key."""

    log: _Floats | None = Field(
        default=None, description="[low, high]: log-uniform, such as [3e-4, 3e-2]"
    )
    uniform: _Floats | None = Field(default=None, description="[low, high]: uniform")
    int: _Wholes | None = Field(
        default=None, description="[low, high]: uniform whole numbers, both ends included"
    )
    choice: tuple[Any, ...] | None = Field(
        default=None, min_length=2, description="values that are equally probable"
    )

    @model_validator(mode="after")
    def _one_distribution(self) -> "Search":
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            got = " and ".join(given) or "nothing"
            raise ValueError(
                f"wanted one of log, uniform, int and choice, got {got}. "
                f"Write {{log: [3e-4, 3e-2]}}"
            )
        if self.choice is not None:
            texts = [json.dumps(value, sort_keys=True) for value in self.choice]
            no_duplicates(tuple(texts))
            return self
        [(name, (low, high))] = given.items()
        if low >= high:
            raise ValueError(f"{name} got [{low}, {high}], wanted low < high. Swap or change them")
        if name == "log" and low <= 0:
            raise ValueError(f"log got a lowest value of {low}, wanted more than 0. Raise it")
        return self


class Tune(Config):
    """A search over the same trials for each row. The table's runs use the best values."""

    space: dict[str, Search] = Field(
        min_length=1,
        max_length=20,
        description="dotted key -> {log: [low, high]}, {uniform: [low, high]}, {int: [low, high]} "
        "or {choice: [...]}. No row may set such a key",
    )
    trials: int = Field(
        ge=2, le=1000, description="trials of each row (on each pack): random values of the space"
    )
    seeds: tuple[Seed, ...] = Field(
        min_length=1,
        description="each trial is trained with each of these seeds. The table uses none of them",
    )
    metric: str | None = Field(
        default=None,
        description="val/<task>/<metric>, whose mean over the seeds decides [the table's metric "
        "on val]",
    )

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return no_duplicates(seeds)

    @field_validator("metric")
    @classmethod
    def _on_validation(cls, metric: str | None) -> str | None:
        if metric is None:
            return metric
        if metric.startswith("test/"):
            raise ValueError(
                f"{metric} would choose values by the samples that the table reports, so its "
                f"numbers would be too good. Write val/{metric.removeprefix('test/')}"
            )
        if not metric.startswith("val/"):
            raise ValueError(f"wanted val/<task>/<metric>, got {short(metric)!r}")
        try:
            checked_direction(metric, None)
        except ConfigError:
            raise ValueError(f"{metric} has no better direction. Choose another") from None
        return metric

    @field_validator("space")
    @classmethod
    def _tunable(cls, space: dict[str, Search]) -> dict[str, Search]:
        for key in space:
            if key.split(".")[0] in NOT_TUNABLE:
                raise ValueError(f"{key} cannot be tuned. Remove it")
            if key in _NOT_IDENTITY:
                raise ValueError(f"{key} changes no result, so it cannot be tuned. Remove it")
        return space

    @model_validator(mode="after")
    def _enough_values(self) -> "Tune":
        draw_values(self)
        return self


def draw_values(tune: Tune) -> list[Values]:
    """The values of each trial. All are different.

    Raises:
        ValueError: the space has fewer values than trials.
    """
    sizes = [_size(search) for search in tune.space.values()]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes) and prod(known) < tune.trials:
        raise ValueError(
            f"the space has {prod(known)} combinations, fewer than {tune.trials} trials. "
            f"Write trials: {prod(known)}"
        )
    found: dict[str, Values] = {}
    for draw in range(MAX_DRAWS * tune.trials):
        values = {key: _draw(key, search, draw) for key, search in tune.space.items()}
        found.setdefault(json.dumps(values, sort_keys=True), values)
        if len(found) == tune.trials:
            return list(found.values())
    raise ValueError(
        f"the space has fewer than {tune.trials} different values of {DIGITS} significant digits. "
        f"Widen it, or write fewer trials"
    )


def space_words(tune: Tune) -> list[str]:
    """Each key with its distribution: `optimizer.lr (log 0.0003 to 0.03)`."""
    return [f"{key} ({search_words(search)})" for key, search in tune.space.items()]


def search_words(search: Search) -> str:
    """A distribution: `log 0.0003 to 0.03`."""
    if search.choice is not None:
        return f"one of {', '.join(map(str, search.choice))}"
    for name, bounds in vars(search).items():
        if bounds is not None:
            return f"{name} {bounds[0]:.12g} to {bounds[1]:.12g}"
    return ""


def budget_words(trials: int, space: Sequence[str], seeds: Sequence[int], metric: str) -> str:
    """The budget of each row: `12 trials of optimizer.lr (log 0.0003 to 0.03) on seeds ...`."""
    noun = "seed" if len(seeds) == 1 else "seeds"
    numbers = ", ".join(map(str, seeds))
    return f"{counted(trials, 'trial')} of {', '.join(space)} on {noun} {numbers} by {metric}"


def check_row(tune: Tune, row: str, overrides: Values, settings: Values) -> None:
    """Refuse a row that sets a key of the space: its trials would differ from those of others.

    Raises:
        ConfigError: it does.
    """
    for leaf in flatten(overrides):
        for key in tune.space:
            if leaf != key and not leaf.startswith(f"{key}.") and not key.startswith(f"{leaf}."):
                continue
            where = f"row {row!r} sets {leaf!r}"
            if any(leaf == setting for setting in flatten(settings)):
                where = f"--set {leaf}"
            raise ConfigError(
                f"{where}: tune.space searches {key!r} for every row. Remove one of them"
            )


def is_at_border(tune: Tune, key: str, value: Any) -> bool:
    """Whether no trial has a lower value, or none a higher one. False for a choice."""
    if tune.space[key].choice is not None:
        return False
    tried = [values[key] for values in draw_values(tune)]
    return value in (min(tried), max(tried))


def _size(search: Search) -> int | None:
    """Number of values. None if there is no limit."""
    if search.choice is not None:
        return len(search.choice)
    if search.int is not None:
        return search.int[1] - search.int[0] + 1
    return None


def _draw(key: str, search: Search, draw: int) -> Any:
    """One value, from a hash of key and number."""
    digest = hashlib.sha256(f"tune/{key}/{draw}".encode()).digest()
    share = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # in [0, 1)
    if search.choice is not None:
        return search.choice[floor(share * len(search.choice))]
    if search.int is not None:
        low, high = search.int
        return low + floor(share * (high - low + 1))
    if search.log is not None:
        start, end = search.log
        return _rounded(exp(log(start) + share * (log(end) - log(start))), start, end)
    start, end = search.uniform or (0.0, 1.0)
    return _rounded(start + share * (end - start), start, end)


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


_NOT_IDENTITY = frozenset(without_identity(TrainConfig))
