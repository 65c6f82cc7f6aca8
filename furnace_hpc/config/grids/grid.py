"""Define and read a grid file (`experiments/*.yaml`). expansion.py turns it into runs."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from furnace_hpc.config.base import ColumnName, Config, Name, RowName, Seed, number, short_name
from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.flatten import duplicate_key
from furnace_hpc.config.grids.ablate import Ablate, Overrides, RowOverrides
from furnace_hpc.config.grids.settings import check_settings
from furnace_hpc.config.grids.tune import Tune
from furnace_hpc.config.identity import without_identity
from furnace_hpc.config.metrics import Direction, checked_direction, metric_direction
from furnace_hpc.config.own_code.sources import OwnCode, read_own_code
from furnace_hpc.config.parsing.lookup import find_file, parse_value, read_with_source
from furnace_hpc.config.parsing.source_text import SourceText
from furnace_hpc.config.parsing.text_safety import find_secret
from furnace_hpc.config.parsing.validation import validate
from furnace_hpc.config.train_config import TrainConfig

MAX_SWEPT = 100  # keys of axes and zip
DeepSpeedFiles = dict[str, tuple[Path, dict[str, Any]]]  # name -> path and content
_RANGE = re.compile(r"([0-9]{1,9})\s*(?:-|\.\.|to)\s*([0-9]{1,9})")


class Grid(Config):
    """One study: rows (variants) x seeds, and the form of its table."""

    name: Name = Field(description="name of the folders of its runs and results")
    description: str = Field(default="", description="text above the table")
    base: dict[str, Any] = Field(
        description="the config that every row starts from (nested, or dotted keys)"
    )
    resources: dict[str, Any] = Field(
        default_factory=dict,
        description="nodes, processes_per_node, timeout_min, partition, sbatch",
    )
    seeds: tuple[Seed, ...] = Field(min_length=1, description="each row is trained with each seed")
    packs: tuple[Name, ...] = Field(
        default=(),
        description="packs of one data set that differ in the data seed or the part of a pool "
        "(folders under the data root). Each row is trained on each pack with each seed. "
        "`tridigits-1of5` and `tridigits-seed7` are packed automatically",
    )
    reference: RowName = Field(description="the row that the others are compared with")
    sanity: tuple[RowName, ...] = Field(
        default=(),
        description="rows that must not beat the reference, such as one modality or twice the "
        "steps. If one does, the table has a warning",
    )
    sources: tuple[RowName, ...] = Field(
        default=(),
        description="rows that only give their weights to others (`init_from`), such as a "
        "pretraining on other data. The table leaves them out",
    )
    metric: str = Field(
        description="<split>/<task>/<metric> of the table. `metrics` may replace it"
    )
    metrics: tuple[str, ...] = Field(
        default=(),
        description="several metrics of the table. The first one decides verdicts. The others are "
        "columns without verdicts [only `metric`]",
    )
    direction: Direction = Field(
        default="max", description="better values are higher (max) or lower (min) [the metric's]"
    )
    sesoi: Annotated[float, BeforeValidator(number)] | None = Field(
        default=None,
        gt=0,
        description="smallest effect size of interest, in the unit of the table: 1.0 is one point "
        "of accuracy. With it, rows can be equivalent to the reference, and a note says how many "
        "seeds resolve it [none]",
    )
    verdicts: Literal["both", "rows", "effects"] = Field(
        default="both",
        description="comparisons that have verdicts if rows combine factors: `rows`, `effects` of "
        "the factors, or `both`, which are corrected together. Choose it before the first run",
    )
    columns: tuple[ColumnName, ...] = Field(
        default=(),
        description="columns of the table after the row's name, in this order. hedges_g, "
        "improvement, correlation and iqm are shown only if they are named [all others]",
    )
    by: tuple[str, ...] = Field(
        default=(),
        description="dotted keys. The table has one row per combination of their values [one row "
        "per variant]",
    )
    variants: dict[Name, RowOverrides] = Field(
        default_factory=dict, description="row name -> overrides by dotted keys"
    )
    ablate: Ablate | None = Field(default=None, description="rows made from factors")
    axes: dict[str, list[Any]] = Field(
        default_factory=dict, description="dotted key -> values. All combinations are made"
    )
    zip: list[dict[str, list[Any]]] = Field(
        default_factory=list, description="groups of keys whose values change together"
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list,
        description="drops each row that matches all keys of an entry. Keys: those that base or "
        "the row sets, and `variant`",
    )
    tune: Tune | None = Field(
        default=None,
        description="search of values for each row, with the same trials, before the table's runs "
        "[none: rows are not tuned]",
    )
    code: tuple[str, ...] = Field(
        default=(),
        max_length=20,
        description="your own packages and modules, such as ./my_package, relative to the grid "
        "file. Their hash is part of the identity of the rows that use them",
    )
    code_sha256: str | None = Field(
        default=None, description="hash of the files of `code`. submit writes this key"
    )
    settings: Overrides = Field(
        default_factory=dict,
        max_length=200,
        description="values of `--set`, which override every row. submit writes this key",
    )

    _source: SourceText | None = PrivateAttr(default=None)  # the file that it was read from
    _own_code: OwnCode | None = PrivateAttr(default=None)  # of `code`; None in a copy by submit
    _deepspeed_files: DeepSpeedFiles = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _metric_and_direction(cls, content: Any) -> Any:
        """Fill in the first of `metrics`, and the metric's own direction."""
        if not isinstance(content, dict):
            return content
        metrics = content.get("metrics")
        if content.get("metric") is None and isinstance(metrics, (list, tuple)) and metrics:
            content = content | {"metric": metrics[0]}
        if content.get("direction") is not None:
            return content
        others = {key: value for key, value in content.items() if key != "direction"}
        if own := metric_direction(str(content.get("metric"))):
            others["direction"] = own
        return others

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds_are_a_list(cls, seeds: Any) -> Any:
        """Refuse one number, and ranges such as `0-4`, with the list to write."""
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            several = ""
            if 2 <= seeds <= 10:
                several = f"seeds: {list(range(seeds))} for {seeds} seeds, or "
            raise ValueError(f"wanted a list. Write {several}seeds: [{seeds}] for seed {seeds}")
        for text in [seeds] if isinstance(seeds, str) else _texts(seeds):
            if found := _RANGE.fullmatch(text.strip()):
                raise ValueError(f"wanted a list. Write seeds: {_numbers_of(found)}")
        return seeds

    def __eq__(self, other: object) -> bool:
        """Whether two grids have the same content. Their files do not matter."""
        return isinstance(other, Grid) and vars(self) == vars(other)

    @property
    def source(self) -> SourceText | None:
        """The text of the grid's file. None if the grid was not read from a file."""
        return self._source

    @property
    def own_code(self) -> OwnCode | None:
        """The files of `code`. None without it, and in the copy of a grid that submit wrote."""
        return self._own_code

    @property
    def deepspeed_files(self) -> DeepSpeedFiles:
        """The DeepSpeed files that its rows have named so far. Each is read once."""
        return self._deepspeed_files

    @model_validator(mode="after")
    def _lists(self) -> "Grid":
        empty = [key for key, values in self.axes.items() if not values]
        problems = [f"axes.{key} is empty. Write values, or remove it" for key in empty]
        for index, group in enumerate(self.zip):
            lengths = {key: len(values) for key, values in group.items()}
            if len(set(lengths.values())) != 1 or 0 in lengths.values():
                problems.append(
                    f"zip[{index}] needs lists of one length, got {lengths}. Add or remove values"
                )
        for key in ("seeds", "packs", "columns", "metrics"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                problems.append(f"{key} {list(values)} has a duplicate. Keep one")
        swept = Counter([*self.axes, *(key for group in self.zip for key in group)])
        twice = sorted(key for key, count in swept.items() if count > 1)
        problems += [f"key {key!r} is swept twice. Keep one" for key in twice]
        if len(swept) > MAX_SWEPT:
            problems.append(f"{len(swept):,} keys are swept, more than {MAX_SWEPT}. Sweep fewer")
        if self.metrics and self.metrics[0] != self.metric:
            problems.append(
                f"metric is {self.metric!r}, and the first of metrics is {self.metrics[0]!r}. "
                f"Remove metric"
            )
        problems += self._problems_of_keys()
        problems += self._problems_of_direction()
        problems += self._problems_of_tune()
        if problems:
            raise ValueError(". ".join(problems))
        return self

    def _problems_of_keys(self) -> list[str]:
        sections = {"base": self.base}
        sections |= {f"variants.{name}": row for name, row in self.variants.items()}
        if self.ablate:
            factors = self.ablate.factors.items()
            sections |= {f"ablate.factors.{name}": factor for name, factor in factors}
        return [
            f"{section} has two values of {key!r}, one with dots and one nested. Keep one"
            for section, content in sections.items()
            if (key := duplicate_key(content))
        ]

    def _problems_of_direction(self) -> list[str]:
        given = self.direction if "direction" in self.model_fields_set else None
        try:
            checked_direction(self.metric, given)
        except ConfigError as error:
            return [str(error)]
        return []

    def _problems_of_tune(self) -> list[str]:
        if self.tune is None:
            return []
        if both := sorted(set(self.tune.seeds) & set(self.seeds)):
            return [
                f"tune.seeds {list(self.tune.seeds)} and seeds {list(self.seeds)} both have "
                f"{both[0]}: values must be chosen on seeds that the table does not use. Change one"
            ]
        try:
            checked_direction(self.tuning_metric, None)
        except ConfigError:
            return [f"tune needs a metric, because {self.metric} has no better direction. Add one"]
        return []

    @property
    def more_metrics(self) -> tuple[str, ...]:
        """The metrics of the table that have no verdicts."""
        return self.metrics[1:]

    @property
    def tuning_metric(self) -> str:
        """The validation metric that chooses among trials."""
        if self.tune and self.tune.metric:
            return self.tune.metric
        _, _, rest = self.metric.partition("/")
        return f"val/{rest.partition('@')[0]}"

    @property
    def tuning_direction(self) -> Direction:
        """Better values of the tuning metric. An own metric has the direction of the table's."""
        return metric_direction(self.tuning_metric) or self.direction

    def rows(self) -> dict[str, Overrides]:
        """Row name -> overrides, before axes and zip.

        Raises:
            ConfigError: variants and ablate make rows of the same name.
        """
        made = self.ablate.rows() if self.ablate else {}
        if overlap := sorted(self.variants.keys() & made.keys()):
            raise ConfigError(
                f"grid {self.name!r}: both variants and ablate make a row {overlap[0]!r}. Rename "
                f"the one in variants"
            )
        return self.variants | made

    def check_settings(self) -> None:
        """Refuse settings that would overwrite what a sweep or a row sets.

        Raises:
            ConfigError: a setting shares a key with a sweep or a row.
        """
        sweeps = [("axes", self.axes), *(("zip", group) for group in self.zip)]
        check_settings(self.settings, sweeps, self.rows(), _NOT_IDENTITY)


def _texts(values: Any) -> list[str]:
    known = values if isinstance(values, (list, tuple)) else []
    return [value for value in known if isinstance(value, str)]


def _numbers_of(found: re.Match[str]) -> str:
    """The list of the numbers of a range. A long list is shortened."""
    first, last = sorted((int(found[1]), int(found[2])))
    if last - first < 20:
        return str(list(range(first, last + 1)))
    return f"[{first}, {first + 1}, {first + 2}, ...] with each seed"


def load_grid(name_or_path: str) -> Grid:
    """Read the grid of this name or path.

    Raises:
        ConfigError: unknown name, or all problems of the file.
    """
    return read_grid(find_file("grid", name_or_path))


def read_grid(path: Path) -> Grid:
    """Read one grid file.

    Raises:
        ConfigError: all problems of the file.
    """
    content, source = read_with_source(path)
    grid = validate(Grid, content, str(path), source.at)
    if grid.code and grid.code_sha256 is None:
        grid = pin_code(grid, path)
    grid._source = source
    return grid


def pin_code(grid: Grid, path: Path) -> Grid:
    """The grid with absolute paths of its code, and their hash.

    Raises:
        ConfigError: as `read_own_code`.
    """
    paths = [path.absolute().parent / entry for entry in grid.code]
    code = read_own_code(paths, str(path))
    pinned = tuple(str(entry.resolve()) for entry in paths)
    grid = grid.model_copy(update={"code": pinned, "code_sha256": code.sha256})
    grid._own_code = code
    return grid


def with_settings(grid: Grid, settings: list[str]) -> Grid:
    """The grid with each `key=value` of `--set`, which overrides every row.

    Raises:
        ConfigError: a setting without `=`, or with a key that a sweep or a row sets.
    """
    changes, source = dict(grid.settings), grid.source or SourceText("", "")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set got {setting!r}, wanted key=value, such as --set optimizer.lr=1e-3"
            )
        if find_secret(setting) is not None:
            raise ConfigError(
                f"--set {key}: its value looks like a secret, and would be copied to scripts and "
                f"reports. Keep secrets out of the config"
            )
        if key == "seed":
            raise ConfigError(
                "--set seed: seeds are listed in the grid. Choose among them with --seed"
            )
        changes.pop(key, None)
        changes[key] = parse_value(text)
        source = source.with_setting(key, text, changes[key])
    changed = grid.model_copy(update={"settings": changes})
    changed._source, changed._own_code = source, grid._own_code
    changed.check_settings()
    return changed


def results_name(grid: Grid) -> str:
    """Folder of the results. Each `--set` has one of its own, with a hash of the settings."""
    if not (settings := settings_of_numbers(grid)):
        return grid.name
    content = json.dumps(settings, sort_keys=True).encode()
    return f"{grid.name}-{hashlib.sha256(content).hexdigest()[:8]}"


def settings_of_numbers(grid: Grid) -> Overrides:
    """The settings without those of resources, which change no number."""
    return {key: value for key, value in grid.settings.items() if not key.startswith("resources.")}


def select_names(names: list[str], chosen: Iterable[str], what: str) -> list[str]:
    """The chosen names in the order of `names`. All names if none is chosen.

    Raises:
        ConfigError: a chosen name does not exist.
    """
    chosen = [short_name(name) for name in chosen]
    for name in chosen:
        if name not in names:
            raise ConfigError(f"unknown {what} {name!r}; {nearest(name, names)}")
    return [name for name in names if name in chosen] or names


_NOT_IDENTITY = frozenset({"resources", *without_identity(TrainConfig)})
