"""Performance profiles of a table: which rows have one, and the panels of their figures."""

from typing import NamedTuple

from furnace_hpc.tables.statistics.estimates import Interval, exact_interval
from furnace_hpc.tables.statistics.profiles import LEAST_RUNS, Step, profile
from furnace_hpc.tables.table import Ablation, Row
from furnace_hpc.tables.text import list_names


class Line(NamedTuple):
    """The profile of one row between two limits, as corners of steps from left to right."""

    name: str
    thresholds: list[float]
    shares: list[float]
    low: list[float]
    high: list[float]


class Panels(NamedTuple):
    """One panel per row, with the lines of the reference and of the row."""

    title: str  # of the vertical axis
    limits: Interval  # of the thresholds
    panels: list[list[Line]]


def profile_panels(ablation: Ablation) -> Panels | None:
    """The panels. None if no row has a profile.

    A row needs at least LEAST_RUNS runs, and none missing: the runs that remain may be the better
    ones. A row on other data than the reference has a panel of its own.
    """
    steps = {}
    for row in ablation.rows:
        if found := _steps(ablation, row):
            steps[row.variant] = found
    if not steps:
        return None
    thresholds = [step.threshold for of_row in steps.values() for step in of_row]
    limits = min(thresholds), max(thresholds)
    margin = (limits[1] - limits[0]) / 20 or 1.0
    limits = limits[0] - margin, limits[1] + margin
    rows = {row.variant: row for row in ablation.rows}
    is_max = ablation.metric.direction == "max"
    lines = {
        name: _line(name, len(rows[name].values), of_row, limits, is_max)
        for name, of_row in steps.items()
    }
    sign = ">" if is_max else "<"
    title = f"share of runs with {ablation.metric.name} {sign} threshold"
    return Panels(title, limits, _panels(ablation, lines))


def profile_sentences(ablation: Ablation) -> list[str]:
    """What the profiles are, and which rows have none."""
    runs = f"runs of all {ablation.unit}s" if ablation.packs else "runs"
    packs = f" for these {ablation.unit}s" if ablation.packs else ""
    found = [
        f"Performance profile (Agarwal et al. 2021): share of the {runs} of a row that are better "
        f"than a threshold, with the exact 95 % interval of Clopper and Pearson for each threshold "
        f"by itself. The bands are conservative{packs}, and not corrected. They are not a test: "
        f"two rows may differ although their bands overlap."
    ]
    if ablation.unit == "data set":
        found.append("Values of all data sets are pooled as they are, so they need one scale.")
    without = [row.variant for row in ablation.rows if not _steps(ablation, row)]
    if without:
        found.append(
            f"Rows with fewer than {LEAST_RUNS} runs, or with missing ones, have no profile: "
            f"{list_names(without)}."
        )
    return found


def _steps(ablation: Ablation, row: Row) -> list[Step]:
    if row.gaps:
        return []
    return profile(list(row.values.values()), ablation.metric.direction == "max")


def _panels(ablation: Ablation, lines: dict[str, Line]) -> list[list[Line]]:
    reference = ablation.reference
    found = []
    for row in ablation.rows:
        if row is reference or row.variant not in lines:
            continue
        panel = [lines[row.variant]]
        if reference and reference.variant in lines and row.data_sets == reference.data_sets:
            panel.insert(0, lines[reference.variant])
        found.append(panel)
    return found or [[line] for line in lines.values()]


def _line(name: str, n: int, steps: list[Step], limits: Interval, is_max: bool) -> Line:
    """The corners of the steps, with the shares at both limits."""
    all_better = Step(limits[0] if is_max else limits[1], 1.0, *exact_interval(1.0, n))
    line = Line(name, [], [], [], [])
    before = all_better
    for step in [all_better, *steps]:
        for corner in (before, step):
            line.thresholds.append(step.threshold)
            line.shares.append(corner.share)
            line.low.append(corner.low)
            line.high.append(corner.high)
        before = step
    line.thresholds.append(limits[1] if is_max else limits[0])
    for values, last in ((line.shares, before.share), (line.low, before.low)):
        values.append(last)
    line.high.append(before.high)
    if is_max:
        return line
    return Line(name, *(values[::-1] for values in line[1:]))
