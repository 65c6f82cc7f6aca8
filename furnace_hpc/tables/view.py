"""Another view of a grid: another metric, some of the runs, or rows by the values of a key."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from furnace_hpc.config.errors import ConfigError, nearest
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.metrics import checked_direction, is_one_of, metric_direction
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.tables.collect import flat_config, row_name, with_metric
from furnace_hpc.tables.table import Ablation
from furnace_hpc.tables.text import as_number, format_value

MAX_METRICS = 8  # in the report's list of metrics
MAX_VALUES = 4_000  # runs times metrics; a larger report would be slow


@dataclass(frozen=True)
class View:
    """The options of `aggregate` that change a table.

    An empty view is the table of the grid file.
    """

    metric: str | None = None
    direction: Literal["max", "min"] | None = None
    by: tuple[str, ...] = ()  # keys whose values make the rows
    # key=value; conditions on one key are alternatives, conditions on several keys must all hold
    where: tuple[str, ...] = ()
    more_metrics: tuple[str, ...] = ()  # further columns, if `metric` is given

    @property
    def suffix(self) -> str:
        """Suffix of the results folder, so that a view does not replace the table.

        Empty if the view is.
        """
        parts = [self.metric or "", *self.more_metrics, self.direction or ""]
        parts += [*(f"by {key}" for key in self.by), *self.where]
        words = " ".join(part for part in parts if part)
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", words).strip("-")


def metrics_of(names: Sequence[str] | None) -> tuple[str | None, tuple[str, ...]]:
    """The metric of a view, and its further metrics."""
    if not names:
        return None, ()
    return names[0], tuple(names[1:])


def apply_view(grid: Grid, runs: list[RunSpec], view: View) -> tuple[Grid, list[RunSpec]]:
    """The grid and the runs as the view shows them.

    Raises:
        ConfigError: no run has a key or value of the view, or the view excludes all runs of the
            reference.
    """
    for key in view.by:
        _check_key(key, runs, "--by")
    kept = select(runs, view.where)
    references = [spec for spec in kept if spec.variant == grid.reference]
    if not references:
        raise ConfigError(
            f"--where {' '.join(view.where)} excludes all runs of the reference "
            f"{grid.reference!r}. Differences need it, so include it"
            f"{_reference_hint(grid, view.where)}"
        )
    changes = _draws_of(grid, kept, view) | _metric_of(grid, kept, view)
    if view.by:  # a row has several variants, so no row is a sanity row
        changes |= {"reference": row_name(references[0], view.by), "sanity": ()}
    else:
        variants = {spec.variant for spec in kept}
        changes["sanity"] = tuple(name for name in grid.sanity if name in variants)
    if view.where:
        changes["description"] = f"{grid.description} Where {', '.join(view.where)}.".strip()
    return grid.model_copy(update=changes), kept


def why_no_verdict(grid: Grid, runs: list[RunSpec], view: View) -> str:
    """Why the table of a view has no mark. Empty if it is the table of the grid itself.

    The correction counts the rows of the grid as submitted. A view that is chosen after a look at
    the results would count fewer.
    """
    shown, kept = apply_view(grid, runs, view)
    differs = {
        "--metric": shown.metric != grid.metric,
        "--direction": shown.metric == grid.metric and shown.direction != grid.direction,
        "--by": bool(view.by) and view.by != grid.by,
        "--where": len(kept) < len(runs),
    }
    options = [option for option, is_used in differs.items() if is_used]
    if not options:
        return ""
    verb = "changes" if len(options) == 1 else "change"
    return (
        f"No marks, verdicts and corrected p values, because {' and '.join(options)} {verb} what "
        f"the grid compares. The grid's own table has them."
    )


def tables_of_other_metrics(ablation: Ablation) -> Iterator[Ablation]:
    """The table with each other metric that all finished runs have, without verdicts.

    Scores of subsets and of consistency are left out, because they have heat maps.
    """
    results = [run.own_result for run in ablation.runs if run.own_result]
    if not results:
        return
    names = set.intersection(*(set(result.metrics) for result in results))
    plain = [name for name in names if "@" not in name and "/consistency/" not in name]
    split = ablation.metric.split
    plain.sort(key=lambda name: (not name.startswith(f"{split}/"), name))
    wanted = [name for name in plain if name != ablation.metric.name][:MAX_METRICS]
    for name in wanted[: MAX_VALUES // len(ablation.runs)]:
        try:
            direction = checked_direction(name, None)
        except ConfigError:  # neither direction is better
            continue
        is_known = metric_direction(name) is not None  # not of a metric of own code
        yield replace(with_metric(ablation, name, direction), has_direction=is_known)


def _draws_of(grid: Grid, kept: list[RunSpec], view: View) -> dict[str, Any]:
    """Seeds and packs of the runs that are kept."""
    seeds = {spec.config.seed for spec in kept}
    changes: dict[str, Any] = {"seeds": tuple(seed for seed in grid.seeds if seed in seeds)}
    if "data.name" in view.by:  # packs are rows
        changes["packs"] = ()
    elif grid.packs:
        names = {spec.config.data.name for spec in kept}
        changes["packs"] = tuple(pack for pack in grid.packs if pack in names)
    return changes


def _metric_of(grid: Grid, kept: list[RunSpec], view: View) -> dict[str, Any]:
    """Metric and direction of the view."""
    if not view.metric and not view.direction:
        return {}
    metric, direction = view.metric or grid.metric, view.direction
    if metric == grid.metric:
        direction = direction or grid.direction
    own = {name for spec in kept for name in spec.config.evaluation.own_metrics}
    if direction is None and is_one_of(metric, own):
        raise ConfigError(
            f"metric {metric!r} is of your own code, so its better values are not known. Add "
            f"--direction max or --direction min"
        )
    changes: dict[str, Any] = {"metric": metric, "direction": checked_direction(metric, direction)}
    if view.metric:
        metrics = (metric, *view.more_metrics)
        if len(set(metrics)) < len(metrics):
            raise ConfigError(f"--metric has a duplicate: {', '.join(metrics)}. Give each once")
        changes["metrics"] = metrics
    return changes


def _reference_hint(grid: Grid, where: tuple[str, ...]) -> str:
    """The option that adds the runs of the reference, if all conditions choose rows."""
    if not all(condition.startswith("variant=") for condition in where):
        return ""
    return f": add --where variant={grid.reference}"


def select(runs: list[RunSpec], where: tuple[str, ...]) -> list[RunSpec]:
    """The runs that meet the conditions `key=value`.

    Raises:
        ConfigError: a condition has another form, or no run has its key or its value.
    """
    wanted: dict[str, list[str]] = {}
    for condition in where:
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--where got {condition!r}, wanted key=value. Example: --where loss.alpha=0.5"
            )
        wanted.setdefault(key, []).append(value)
    kept = runs
    for key, values in wanted.items():
        _check_key(key, runs, "--where")
        texts = {_text(spec, key) for spec in runs}
        for value in values:
            if not _matches_any(value, texts):
                raise ConfigError(f"--where {key}={value} matches no run; {nearest(value, texts)}")
        matching = {text for text in texts if any(_matches(text, value) for value in values)}
        kept = [spec for spec in kept if _text(spec, key) in matching]
    return kept


def _matches_any(wanted: str, texts: Collection[str]) -> bool:
    return any(_matches(text, wanted) for text in texts)


def _matches(text: str, wanted: str) -> bool:
    """Whether a value matches as text (with * and ?) or as a number: 1e-3 matches 0.001."""
    if text == wanted or fnmatchcase(text, wanted):
        return True
    number = as_number(wanted)
    return number is not None and number == as_number(text)


def _text(spec: RunSpec, key: str) -> str:
    values = flat_config(spec)
    if key not in values:
        return ""
    return format_value(values[key])


def _check_key(key: str, runs: list[RunSpec], option: str) -> None:
    keys = {key for spec in runs for key in flat_config(spec)}
    if key not in keys:
        raise ConfigError(f"{option} {key}: no run has this key; {nearest(key, keys)}")
