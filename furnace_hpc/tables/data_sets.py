"""Rank the methods of a table over several data sets, and describe the ranks in a note."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any

from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.tables.factors import DATA
from furnace_hpc.tables.statistics.ranks import LEAST_METHODS, Ranks, rank_methods
from furnace_hpc.tables.statistics.significance import format_p
from furnace_hpc.tables.table import Note, Row, Run
from furnace_hpc.tables.text import format_value, list_names

GetSettings = Callable[[Sequence[Run]], dict[str, Any]]  # of the first run


def rank_over_data_sets(
    grid: Grid, rows: Sequence[Row], settings_of: GetSettings, has_verdicts: bool = True
) -> tuple[Ranks | None, str]:
    """The ranks of the methods. None without several data sets, or if a method lacks a value.

    A data set is a value of `data.name`, or of another tool's column of data sets. Packs that are
    drawn from one pool of samples are one data set. A method is what the runs share beside the data
    set: a row, if no row is about one data set. Sanity rows that lack a value are left out.

    Args:
        grid: the grid as the table shows it.
        rows: all rows of the table.
        settings_of: returns the config of a run by dotted keys.
        has_verdicts: whether there may be a test.

    Returns:
        The ranks, and why there are none. The reason is empty if the table does not compare methods
        over data sets.
    """
    data_sets = _data_sets(rows)
    if len(set(data_sets.values())) < 2:
        return None, ""
    methods = _methods(rows, settings_of)
    runs = [run for row in rows for run in row.runs]
    others = [run for run in runs if run.spec.variant not in grid.sanity]
    sanity = {methods[id(run)] for run in runs} - {methods[id(run)] for run in others}
    names = sorted({data_sets[id(run)] for run in others})
    if len(names) < 2:
        return None, ""
    values, lacking = _values(runs, methods, data_sets, names)
    whole = [method for method in values if method not in lacking]
    if not whole or len(values) - len(lacking.keys() & sanity) < LEAST_METHODS:
        return None, ""
    if gaps := [f"{name} {why}" for name, why in lacking.items() if name not in sanity]:
        return None, f"no ranks over {len(names)} data sets: {list_names(gaps, '; ')}"
    scores = {method: [fmean(values[method][name]) for name in names] for method in whole}
    ranks = rank_methods(scores, names, grid.direction == "max")
    ranks = replace(ranks, left_out=tuple(f"{method} {why}" for method, why in lacking.items()))
    if not has_verdicts and not ranks.why_no_test:
        why = "a view is chosen after a look at the results"
        ranks = replace(ranks, friedman_p=None, critical_difference=None, why_no_test=why)
    return ranks, ""


def _values(
    runs: Sequence[Run],
    methods: Mapping[int, str],
    data_sets: Mapping[int, str],
    names: Sequence[str],
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Method -> data set -> values of its runs, and method -> what it lacks."""
    values: dict[str, dict[str, list[float]]] = {}
    without: dict[str, dict[str, None]] = {}  # method -> data sets on which a run has no value
    for run in runs:
        method, data_set = methods[id(run)], data_sets[id(run)]
        of_method = values.setdefault(method, {})
        if run.value is None or not run.counts:
            without.setdefault(method, {})[data_set] = None
        else:
            of_method.setdefault(data_set, []).append(run.value)
    lacking = {name: f"lacks a value on {list_names([*sets])}" for name, sets in without.items()}
    for method, of_method in values.items():
        if absent := [name for name in names if name not in of_method]:
            lacking.setdefault(method, f"has no run on {list_names(absent)}")
    return values, lacking


def rank_notes(ranks: Ranks | None, why_none: str = "") -> Iterator[Note]:
    """The notes on the ranks, or on why there are none."""
    if why_none:
        yield Note(why_none)
    if ranks is None:
        return
    if ranks.left_out:
        yield Note(f"sanity rows without a rank: {list_names(ranks.left_out, '; ')}")
    best_first = sorted(ranks.mean_ranks.items(), key=lambda item: item[1])
    text = (
        f"mean ranks over {len(ranks.data_sets)} data sets (1 is best): "
        f"{'; '.join(f'{name} {rank:.2f}' for name, rank in best_first)}. "
    )
    if ranks.friedman_p is None or ranks.critical_difference is None:
        yield Note(f"{text}No Friedman test: {ranks.why_no_test}")
        return
    text += f"Friedman test over data sets: p {format_p(ranks.friedman_p)}"
    if ranks.shown_difference is None:
        yield Note(f"{text}. It shows no difference between them, so no pairs are compared")
        return
    different = [
        f"{one} and {other}"
        for (one, first), (other, second) in combinations(best_first, 2)
        if second - first > ranks.critical_difference
    ]
    text += (
        f"; critical difference of two mean ranks {ranks.critical_difference:.2f} "
        f"(Nemenyi, 5 %, all pairs), "
    )
    pairs = list_names(different, "; ") if different else "no pair"
    yield Note(f"{text}exceeded by {pairs}. Verdicts of rows and this test each have their own 5 %")


def _data_sets(rows: Sequence[Row]) -> dict[int, str]:
    """Id of each run -> its data set: the pool of its samples, or the name of its data."""
    found = {}
    for run in (run for row in rows for run in row.runs):
        name = run.draw.pack
        if run.own_spec is not None:
            if run.draw.pack:  # `packs` of a grid are draws of one data set
                return {}
            name = run.own_spec.config.data.name
        if run.own_result is not None and run.own_result.data_origin is not None:
            name = run.own_result.data_origin.pool
        found[id(run)] = name
    return found


def _methods(rows: Sequence[Row], settings_of: GetSettings) -> dict[int, str]:
    """Id of each run -> its method: its row, or the settings in which methods differ."""
    settings = {}
    for row in rows:
        for run in row.runs:
            if run.own_spec is None:
                return {id(run): row.variant for row in rows for run in row.runs}
            of_run = {key: format_value(value) for key, value in settings_of([run]).items()}
            settings[id(run)] = {k: v for k, v in of_run.items() if k not in (DATA, "seed")}
    keys = dict.fromkeys(key for of_run in settings.values() for key in of_run)
    differing = [key for key in keys if len({of.get(key) for of in settings.values()}) > 1]
    return {
        number: ", ".join(f"{key}={of_run.get(key, 'none')}" for key in differing)
        for number, of_run in settings.items()
    }
