"""A grid file: the typed form of `experiments/*.yaml`, and reading one. Expansion to runs is in rows.py."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from furnace_hpc.config.base import ColumnName, Config, Name, RowName, Seed, short_name
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.ablate import Ablate, Overrides, RowOverrides
from furnace_hpc.config.grids.settings import check_settings
from furnace_hpc.config.identity import without_identity
from furnace_hpc.config.metrics import Direction, checked_direction, metric_direction
from furnace_hpc.config.parsing.lookup import find_file, parse_value, read_written
from furnace_hpc.config.parsing.source_text import Written
from furnace_hpc.config.parsing.text_safety import find_secret, short
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.train_config import TrainConfig

MAX_DOTS = 32  # in a dotted key
MAX_SWEPT = 100  # keys of axes and zip


class Grid(Config):
    """One study: rows (variants) x seeds, and how its table is read."""

    name: Name = Field(description="folder of its runs and of its results")
    description: str = Field(default="", description="what the study asks; printed over its table")
    base: dict[str, Any] = Field(
        description="the config that every row starts from (nested, or dotted keys)"
    )
    resources: dict[str, Any] = Field(
        default_factory=dict, description="nodes, processes_per_node, timeout_min, partition"
    )
    seeds: tuple[Seed, ...] = Field(
        min_length=1, description="each row is trained with each of them"
    )
    packs: tuple[Name, ...] = Field(
        default=(),
        description="packs of one data set, each drawn with a data seed of its own (folders under the data root; "
        "`tridigits-seed7` packs itself): each row is trained on each of them with each of the seeds",
    )
    reference: RowName = Field(description="the row that differences are taken to")
    sanity: tuple[RowName, ...] = Field(
        default=(),
        description="rows that the reference must not lose to, or its table says so: one modality, twice the steps",
    )
    metric: str = Field(description="<split>/<task>/<metric> of the table")
    direction: Direction = Field(
        default="max", description="which way is better; none: the metric's own"
    )
    columns: tuple[ColumnName, ...] = Field(
        default=(),
        description="columns of the table after the row's name, in this order; none: all that there are",
    )
    by: tuple[str, ...] = Field(
        default=(),
        description="dotted keys whose values make the rows of the table; none: each variant is one",
    )
    variants: dict[Name, RowOverrides] = Field(
        default_factory=dict, description="row name -> overrides by dotted keys"
    )
    ablate: Ablate | None = Field(default=None, description="rows made from factors")
    axes: dict[str, list[Any]] = Field(
        default_factory=dict, description="dotted key -> values; all combinations"
    )
    zip: list[dict[str, list[Any]]] = Field(
        default_factory=list, description="groups of keys that change together"
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list,
        description="a row that matches all keys of an entry is left out (`variant` is a key too)",
    )
    settings: Overrides = Field(
        default_factory=dict,
        max_length=200,
        description="what `--set` laid over every row, last; submit writes it",
    )

    _written: Written | None = PrivateAttr(default=None)  # the file that it was read from

    @model_validator(mode="before")
    @classmethod
    def _direction_of_the_metric(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("direction") is not None:
            return content
        others = {key: value for key, value in content.items() if key != "direction"}
        own = metric_direction(str(content.get("metric")))
        return others | {"direction": own} if own else others

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds_are_a_list(cls, seeds: Any) -> Any:
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            several = f"{list(range(seeds))} for {seeds} seeds, " if 2 <= seeds <= 10 else ""
            raise ValueError(
                f"wanted a list: write seeds: {several}{'or ' if several else ''}[{seeds}] for seed {seeds}"
            )
        return seeds

    def __eq__(self, other: object) -> bool:
        """Whether two grids ask the same, wherever they were read from."""
        return isinstance(other, Grid) and vars(self) == vars(other)

    @property
    def written(self) -> Written | None:
        """Where each value stands in the grid's file. None if the grid was not read from a file."""
        return self._written

    @model_validator(mode="after")
    def _lists(self) -> "Grid":
        problems = [f"axes.{key} is empty" for key, values in self.axes.items() if not values]
        for number, group in enumerate(self.zip):
            lengths = {key: len(values) for key, values in group.items()}
            if len(set(lengths.values())) != 1 or 0 in lengths.values():
                problems.append(f"zip[{number}] needs lists of one length, got {lengths}")
        if len(set(self.seeds)) != len(self.seeds):
            problems.append(f"seeds {list(self.seeds)}: a seed stands twice")
        if len(set(self.packs)) != len(self.packs):
            problems.append(f"packs {list(self.packs)}: a pack stands twice")
        if len(set(self.columns)) != len(self.columns):
            problems.append(f"columns {list(self.columns)}: a column stands twice")
        swept = Counter([*self.axes, *(key for group in self.zip for key in group)])
        problems += [f"key {key!r} is swept twice" for key in sorted(swept) if swept[key] > 1]
        if len(swept) > MAX_SWEPT:
            problems.append(
                f"{len(swept):,} keys are swept, more than {MAX_SWEPT}: no study has so many"
            )
        try:
            checked_direction(
                self.metric, self.direction if "direction" in self.model_fields_set else None
            )
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def rows(self) -> dict[str, Overrides]:
        """Row name -> overrides, before axes and zip.

        Raises:
            ConfigError: variants and ablate make a row of the same name.
        """
        made = self.ablate.rows() if self.ablate else {}
        if overlap := self.variants.keys() & made.keys():
            raise ConfigError(
                f"grid {self.name!r}: row {sorted(overlap)[0]!r} is made by both variants and ablate: rename it"
            )
        return self.variants | made

    def check_settings(self) -> None:
        """Refuse settings that would overwrite what a sweep or a row sets.

        Raises:
            ConfigError: a setting and a sweep, or a row, share a key.
        """
        swept = [("axes", self.axes), *(("zip", group) for group in self.zip)]
        check_settings(self.settings, swept, self.rows(), _NO_NUMBERS)


def load_grid(name_or_path: str) -> Grid:
    """Read the grid that a name or a path means.

    Raises:
        ConfigError: unknown name, or every problem of the file at once.
    """
    path = find_file("grid", name_or_path)
    return read_grid(path)


def read_grid(path: Path) -> Grid:
    """Read one grid file.

    Raises:
        ConfigError: every problem of the file at once.
    """
    content, written = read_written(path)
    grid = validate(Grid, content, str(path), written.at)
    grid._written = written
    return grid


def with_settings(grid: Grid, settings: list[str]) -> Grid:
    """The grid with each `key=value` of `--set` laid over every row (it is the last override).

    Raises:
        ConfigError: a setting without `=`, or of a key that a sweep or a row sets.
    """
    laid, written = dict(grid.settings), grid.written
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set got {setting!r}, wanted key=value, for example --set optimizer.lr=1e-3"
            )
        if find_secret(setting) is not None:
            raise ConfigError(
                f"--set {key}: its value looks like a secret, and would be copied to scripts and reports"
            )
        if key == "seed":
            raise ConfigError(
                "--set seed: the grid's seeds say which are run; use --seed to choose among them"
            )
        laid.pop(key, None)
        laid[key] = parse_value(text)
        written = (written or Written("", "")).with_setting(key, text, laid[key])
    changed = grid.model_copy(update={"settings": laid})
    changed._written = written
    changed.check_settings()
    return changed


def results_name(grid: Grid) -> str:
    """Folder of the grid's results: its name, and a mark of what `--set` changed: a quick look spoils no table."""
    settings = {
        key: value for key, value in grid.settings.items() if not key.startswith("resources.")
    }
    if not settings:
        return grid.name
    return f"{grid.name}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def apply_overrides(content: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of nested `content` with dotted or nested `overrides` laid over it. Lists are replaced whole.

    Raises:
        ConfigError: a dotted key goes through something that is no mapping.
    """
    result = dict(content)
    for key, value in overrides.items():
        if str(key).count(".") > MAX_DOTS:
            raise ConfigError(
                f"key {short(str(key))!r} has more than {MAX_DOTS} dots: no config is so deep"
            )
        head, _, rest = str(key).partition(".")
        if rest:
            inner = result.get(head, {})
            if not isinstance(inner, dict):
                got = short(repr(inner))
                raise ConfigError(
                    f"key {key!r} goes through {head!r}, which is {got} and no mapping"
                )
            result[head] = apply_overrides(inner, {rest: value})
        elif isinstance(value, dict) and isinstance(result.get(head), dict):
            result[head] = apply_overrides(result[head], value)
        else:
            result[head] = value
    return result


def select_names(names: list[str], asked: list[str], what: str) -> list[str]:
    """The `names` that were `asked` for (all when none was).

    Raises:
        ConfigError: an asked name does not exist.
    """
    asked = [short_name(name) for name in asked]
    for name in asked:
        if name not in names:
            raise ConfigError(f"unknown {what} {name!r}; {nearest(name, names)}")
    return [name for name in names if not asked or name in asked]


_NO_NUMBERS = frozenset({"resources", *without_identity(TrainConfig)})
