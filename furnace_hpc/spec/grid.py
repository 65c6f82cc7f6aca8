"""A grid file: the typed form of `experiments/*.yaml`, and reading one. Expansion to runs is in rows.py."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from furnace_hpc.spec.errors import ConfigError, nearest
from furnace_hpc.spec.fields import Config, Name, Seed
from furnace_hpc.spec.files import find_file, parse_value, read_yaml
from furnace_hpc.spec.problems import validate
from furnace_hpc.spec.secrets import find_secret

Overrides = dict[str, Any]
ColumnName = Literal[
    "changes",
    "n",
    "metric",
    "difference",
    "holm_p",
    "sign_flip_p",
    "effect",
    "train_s",
    "wall_s",
    "samples_per_s_each",
    "peak_memory_gib",
    "attempts",
    "lost_steps",
    "hours",
    "goodput",
    "num_parameters",
]


class Ablate(Config):
    """Rows made from factors that are switched on and off."""

    mode: Literal["leave_one_out", "one_at_a_time"] = Field(
        description="leave_one_out: `full` and a `no_<factor>` each; one_at_a_time: `base` and an `only_<factor>` each"
    )
    factors: dict[Name, Overrides] = Field(min_length=1, description="factor -> the overrides that switch it on")

    def rows(self) -> dict[str, Overrides]:
        """Row name -> overrides, in the file's order."""
        if self.mode == "one_at_a_time":
            return {"base": {}} | {f"only_{name}": on for name, on in self.factors.items()}
        rows = {"full": _merge(self.factors.values())}
        for left_out in self.factors:
            rows[f"no_{left_out}"] = _merge(on for name, on in self.factors.items() if name != left_out)
        return rows


class Grid(Config):
    """One study: rows (variants) x seeds, and how its table is read."""

    name: Name = Field(description="folder of its runs and of its results")
    description: str = Field(default="", description="what the study asks; printed over its table")
    base: dict[str, Any] = Field(description="the config that every row starts from (nested, or dotted keys)")
    resources: dict[str, Any] = Field(
        default_factory=dict, description="nodes, processes_per_node, timeout_min, partition"
    )
    seeds: tuple[Seed, ...] = Field(min_length=1, description="each row is trained with each of them")
    packs: tuple[Name, ...] = Field(
        default=(),
        description="packs of one data set, each drawn with a data seed of its own (folders under the data root; "
        "`tridigits-seed7` packs itself): each row is trained on each of them with each of the seeds",
    )
    reference: Name = Field(description="the row that differences are taken to")
    sanity: tuple[Name, ...] = Field(
        default=(),
        description="rows that the reference must not lose to, or its table says so: one modality, twice the steps",
    )
    metric: str = Field(description="<split>/<task>/<metric> of the table")
    direction: Literal["max", "min"] = Field(default="max", description="which way is better")
    columns: tuple[ColumnName, ...] = Field(
        default=(), description="columns of the table after the row's name, in this order; none: all that there are"
    )
    by: tuple[str, ...] = Field(
        default=(), description="dotted keys whose values make the rows of the table; none: each variant is one"
    )
    variants: dict[Name, Overrides] = Field(default_factory=dict, description="row name -> overrides by dotted keys")
    ablate: Ablate | None = Field(default=None, description="rows made from factors")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="dotted key -> values; all combinations")
    zip: list[dict[str, list[Any]]] = Field(default_factory=list, description="groups of keys that change together")
    exclude: list[dict[str, Any]] = Field(
        default_factory=list,
        description="a row that matches all keys of an entry is left out (`variant` is a key too)",
    )
    settings: Overrides = Field(
        default_factory=dict, description="what `--set` laid over every row, last; submit writes it"
    )

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
        swept = [*self.axes, *(key for group in self.zip for key in group)]
        problems += [f"key {key!r} is swept twice" for key in sorted({k for k in swept if swept.count(k) > 1})]
        if problems:
            raise ValueError("; ".join(problems))
        return self


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
    return validate(Grid, read_yaml(path), str(path))


def with_settings(grid: Grid, settings: list[str]) -> Grid:
    """The grid with each `key=value` of `--set` laid over every row (it is the last override).

    Raises:
        ConfigError: a setting without `=`, or of a key that the rows sweep.
    """
    laid = dict(grid.settings)
    swept = {*grid.axes, *(key for group in grid.zip for key in group)}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set got {setting!r}, wanted key=value, for example --set optimizer.lr=1e-3")
        if find_secret(setting) is not None:
            raise ConfigError(f"--set {key}: its value looks like a secret, and would be copied to scripts and reports")
        if key in swept:
            raise ConfigError(f"--set {key}: the grid sweeps this key; narrow its axis in a copy of the grid file")
        if key == "seed":
            raise ConfigError("--set seed: the grid's seeds say which are run; use --seed to choose among them")
        laid.pop(key, None)
        laid[key] = parse_value(text)
    return grid.model_copy(update={"settings": laid})


def results_name(grid: Grid) -> str:
    """Folder of the grid's results: its name, and a mark of what `--set` changed: a quick look spoils no table."""
    settings = {key: value for key, value in grid.settings.items() if not key.startswith("resources.")}
    if not settings:
        return grid.name
    return f"{grid.name}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def lay_over(content: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of nested `content` with dotted or nested `overrides` laid over it. Lists are replaced whole.

    Raises:
        ConfigError: a dotted key goes through something that is no mapping.
    """
    result = dict(content)
    for key, value in overrides.items():
        head, _, rest = str(key).partition(".")
        if rest:
            inner = result.get(head, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"key {key!r} goes through {head!r}, which is {inner!r} and no mapping")
            result[head] = lay_over(inner, {rest: value})
        elif isinstance(value, dict) and isinstance(result.get(head), dict):
            result[head] = lay_over(result[head], value)
        else:
            result[head] = value
    return result


def narrowed(names: list[str], asked: list[str], what: str) -> list[str]:
    """The `names` that were `asked` for (all when none was).

    Raises:
        ConfigError: an asked name does not exist.
    """
    for name in asked:
        if name not in names:
            raise ConfigError(f"unknown {what} {name!r}; {nearest(name, names)}")
    return [name for name in names if not asked or name in asked]


def _merge(parts: Any) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        merged |= part
    return merged
