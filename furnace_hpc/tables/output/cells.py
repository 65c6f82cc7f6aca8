"""The cells of a table as plain text. Each format escapes them in its own way."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from furnace_hpc.tables.large.once import once_per_table
from furnace_hpc.tables.large.paired import pair_statistics_of
from furnace_hpc.tables.metric import Scale
from furnace_hpc.tables.statistics.estimates import SAME, Difference, Interval
from furnace_hpc.tables.statistics.robust import interquartile_mean
from furnace_hpc.tables.statistics.significance import format_exact_p, format_p
from furnace_hpc.tables.statistics.units import by_pack
from furnace_hpc.tables.statistics.verdicts import Verdict
from furnace_hpc.tables.table import Ablation, Note, Row
from furnace_hpc.tables.text import DASH, format_number, format_value, percent

OF_A_FAMILY = ("verdict", "holm_p")  # columns that only the grid's own table has
OPTIONAL = ("hedges_g", "improvement", "correlation", "iqm")  # shown if the grid names them
IF_KNOWN = ("model_tflop_s", "mfu", "data_wait", "energy_kj")  # also if a run has a value
OF_TRIALS = ("tuned", "tuning_hours")  # columns that only a tuned grid has
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNDERTRAINED = "reference under-trained"
MARKS = {Verdict.BETTER: "*", Verdict.WORSE: "\u2020"}  # stands behind a difference
FURTHER = "metric_"  # how the columns of further metrics begin; a number follows
NO_DIFFERENCE = Difference(0.0, None, 0)


class FurtherCell(NamedTuple):
    """The cell of a further metric, which has no verdict."""

    mean: str
    spread: str
    best: bool


class Cells(NamedTuple):
    """The cells of one row."""

    variant: str
    marks: str  # letters of the row's notes
    changes: str
    n: str
    mean: str
    spread: str  # begins with its sign; runs without a value follow
    best: bool
    difference: str  # a mark follows if the row is better or worse
    verdict: str  # one word
    holm_p: str
    sign_flip_p: str
    effect: str
    train_s: str
    wall_s: str
    samples_per_s_each: str
    peak_memory_gib: str
    model_tflop_s: str
    mfu: str
    data_wait: str
    energy_kj: str
    attempts: str
    lost_steps: str
    hours: str
    goodput: str
    num_parameters: str
    trainable: str
    tuned: str = DASH  # chosen values
    tuning_hours: str = DASH
    hedges_g: str = DASH
    improvement: str = DASH
    correlation: str = DASH
    iqm: str = DASH
    further: tuple[FurtherCell, ...] = ()  # of the further metrics
    ranges: Mapping[str, str] = MappingProxyType({})  # cost -> lowest and highest run

    def of_metric(self, column: str) -> FurtherCell:
        """The cell of the column `metric`, or of a further metric."""
        if column == "metric":
            return FurtherCell(self.mean, self.spread, self.best)
        return self.further[int(column.removeprefix(FURTHER)) - 2]


class LetteredNote(NamedTuple):
    """A note with the letter that marks its rows. A note on the whole table has no letter."""

    letter: str
    note: Note


@once_per_table
def headings(ablation: Ablation, usual: Collection[str] = ()) -> dict[str, str]:
    """Column -> title, of the columns in the grid, else of the `usual` ones, else of all."""
    titles = all_headings(ablation)
    further = further_headings(ablation)
    if ablation.grid.columns:
        return {name: titles[name] for name in ("variant", *ablation.grid.columns)} | further
    costs = [row.costs for row in ablation.rows]
    hidden = {name for name in IF_KNOWN if all(getattr(cost, name) is None for cost in costs)}
    hidden |= {*OPTIONAL}
    if all(cost.trainable in (None, cost.num_parameters) for cost in costs):
        hidden.add("trainable")
    if ablation.tuning is None:
        hidden |= {*OF_TRIALS}
    if ablation.why_no_verdict:
        hidden |= {*OF_A_FAMILY}
    wanted = {*(usual or titles), *further} - hidden
    return {name: title for name, title in titles.items() if name in wanted}


def further_headings(ablation: Ablation) -> dict[str, str]:
    """Column -> title of the further metrics."""
    tables = (ablation, *ablation.others)
    short_names = [table.metric.short_name for table in tables]
    found = {}
    for number, table in enumerate(ablation.others, 2):
        name = table.metric.short_name
        if short_names.count(name) > 1:
            name = table.metric.name
        found[f"{FURTHER}{number}"] = f"{name}{arrow(table)}{table.metric.scale.unit}"
    return found


def arrow(ablation: Ablation) -> str:
    """The direction in which the metric is better, as an arrow. Empty if it is unknown."""
    if not ablation.has_direction:
        return ""
    return {"max": " \u2191", "min": " \u2193"}[ablation.metric.direction]


@once_per_table
def all_headings(ablation: Ablation) -> dict[str, str]:
    """Column -> its title, of all columns in their order."""
    scale = ablation.metric.scale
    device = "GPU" if ablation.on_gpus else "process"
    titles = {
        "variant": "variant",
        "changes": f"change to {ablation.grid.reference}",
        "n": "n",
        "metric": _metric_heading(ablation),
        "difference": f"difference{scale.difference_unit}",
        "verdict": "verdict",
        "holm_p": "p (Holm)",
        "sign_flip_p": "p (flip)",
        "effect": "effect",
        "hedges_g": "Hedges' g",
        "improvement": "P(improvement)",
        "correlation": "correlation",
        "iqm": f"IQM{scale.unit}",
        **further_headings(ablation),
        "train_s": "train (s)",
        "wall_s": "wall (s)",
        "samples_per_s_each": f"samples/s per {device}",
        "peak_memory_gib": "peak (GiB)",
        "model_tflop_s": f"TFLOP/s per {device}",
        "mfu": "MFU (%)",
        "data_wait": "data wait (%)",
        "energy_kj": "energy (kJ)",
        "attempts": "attempts",
        "lost_steps": "lost steps",
        "hours": f"{device}-hours",
        "goodput": "goodput (%)",
        "num_parameters": "parameters",
        "trainable": "trainable",
        "tuned": "tuned",
        "tuning_hours": f"tuning ({device}-hours)",
    }
    if ablation.source is None:
        return titles
    unknown = {*vars(ablation.rows[0].costs)}
    if not any(row.changes for row in ablation.rows):
        unknown.add("changes")
    return {name: title for name, title in titles.items() if name not in unknown}


def _metric_heading(ablation: Ablation) -> str:
    """Name, direction if there are further metrics, and unit."""
    metric = ablation.metric
    if not ablation.others:
        return f"{metric.short_name}{metric.scale.unit}"
    name = metric.short_name
    if name in [table.metric.short_name for table in ablation.others]:
        name = metric.name
    return f"{name}{arrow(ablation)}{metric.scale.unit}"


def _further_cells(ablation: Ablation, number: int) -> Iterator[FurtherCell]:
    """The cells of one row, given by its number, in the further metrics."""
    for table in ablation.others:
        row = table.rows[number]
        scale, spread = row_scale(table, row), ""
        if row.mean is not None:
            spread = _spread(row, scale)
        if row.gaps == ablation.rows[number].gaps:  # the first metric's cell has them
            spread = spread.removesuffix(f"({row.gaps})").rstrip()
        mean = DASH if row.mean is None else scale.show(row.mean)
        yield FurtherCell(mean, spread, row.variant in _best_variants(table))


@once_per_table
def all_cells(ablation: Ablation) -> list[Cells]:
    """The cells of every row, in the grid's order."""
    best = _best_variants(ablation)
    letters = _letters_by_row(ablation)
    found = []
    for number, row in enumerate(ablation.rows):
        cells = _cells(ablation, row, row.variant in best, ",".join(letters.get(row.variant, ())))
        cells = cells._replace(further=tuple(_further_cells(ablation, number)))
        if set(OPTIONAL) & set(ablation.grid.columns):
            cells = Cells(**(cells._asdict() | optional_texts(ablation, row)))
        found.append(cells)
    return found


def optional_texts(ablation: Ablation, row: Row) -> dict[str, str]:
    """The cells of the optional columns. The interquartile mean only if `columns` names it."""
    texts = {}
    if found := pair_statistics_of(ablation, row):
        texts = {
            "hedges_g": _with_interval(found.hedges_g, found.hedges_g_interval, "+.2f"),
            "improvement": _with_interval(found.improvement, found.improvement_interval, ".2f"),
            "correlation": format_number(found.correlation, "+.2f"),
        }
        if not ablation.has_direction:
            texts["improvement"] = DASH
    if "iqm" in ablation.grid.columns:
        center, interval = interquartile_mean(by_pack(row.values)) or (None, None)
        if center is not None:
            scale = row_scale(ablation, row)
            text = "" if interval is None else scale.show_interval(interval)
            texts["iqm"] = f"{scale.show(center)} {text}".rstrip()
    return texts


def _with_interval(value: float | None, interval: Interval | None, form: str) -> str:
    """`+1.20 [0.10, 2.30]`, the value alone, or a dash."""
    text = format_number(value, form)
    if interval is None:
        return text
    return f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"


def row_scale(ablation: Ablation, row: Row) -> Scale:
    """How mean and deviation of a row are shown: with two digits of the smaller deviation."""
    noise = SAME * abs(row.mean or 0.0)
    found = [
        deviation
        for deviation in (row.deviation, row.packs_deviation)
        if deviation is not None and deviation > noise
    ]
    return ablation.metric.scale.for_deviation(min(found, default=None), row.mean)


@once_per_table
def _best_variants(ablation: Ablation) -> set[str]:
    """The rows with the best mean on their data, of those that lack no run."""
    on_data: dict[frozenset[str], list[Row]] = {}
    for row in ablation.rows if ablation.has_direction else ():
        if not row.gaps:
            on_data.setdefault(frozenset(row.data_sets), []).append(row)
    return {name for rows in on_data.values() if len(rows) > 1 for name in _best(ablation, rows)}


def _best(ablation: Ablation, rows: Sequence[Row]) -> Iterator[str]:
    """Equal as displayed is equal. Two rows are compared with the digits that both show."""
    means = {row.variant: row.mean for row in rows if row.mean is not None}
    choose = {"max": max, "min": min}[ablation.metric.direction]
    best = choose(rows, key=lambda row: means[row.variant])
    scale = row_scale(ablation, best)
    for row in rows:
        common = replace(scale, digits=min(scale.digits, row_scale(ablation, row).digits))
        if common.show(means[row.variant]) == common.show(means[best.variant]):
            yield row.variant


def _cells(ablation: Ablation, row: Row, best: bool, marks: str) -> Cells:
    costs, tests, scale = row.costs, row.difference or NO_DIFFERENCE, row_scale(ablation, row)
    tuned, tuning_hours = ablation.tuned_cells(row)
    return Cells(
        variant=row.variant,
        marks=marks,
        changes=format_changes(row) or DASH,
        n=_number_of_runs(row),
        mean=DASH if row.mean is None else scale.show(row.mean),
        spread=_spread(row, scale),
        best=best,
        difference=_difference(ablation, row),
        verdict=row.verdict or DASH,
        holm_p=format_p(tests.holm_p) or DASH,
        sign_flip_p=format_exact_p(tests.sign_flip_p) or DASH,
        effect=format_number(tests.effect, "+.2f"),
        train_s=format_number(costs.train_s, ".1f"),
        wall_s=format_number(costs.wall_s, ".1f"),
        samples_per_s_each=format_number(costs.samples_per_s_each, ".1f"),
        peak_memory_gib=format_number(costs.peak_memory_gib, ".2f"),
        model_tflop_s=format_number(costs.model_tflop_s, ".3g"),
        mfu=format_number(costs.mfu and 100 * costs.mfu, ".1f"),
        data_wait=format_number(percent(costs.data_wait), ".1f"),
        energy_kj=format_number(costs.energy_kj, ",.1f"),
        attempts=str(costs.attempts),
        lost_steps=str(costs.lost_steps),
        hours=format_number(costs.hours, ".2f"),
        goodput=format_number(costs.goodput and 100 * costs.goodput, ".1f"),
        num_parameters=format_number(costs.num_parameters, ",d"),
        trainable=format_number(costs.trainable, ",d"),
        tuned=tuned or DASH,
        tuning_hours=format_number(tuning_hours, ".2f"),
        ranges=costs.range_texts(),
    )


def format_changes(row: Row) -> str:
    """The changes of the row to the reference's config, such as `loss.alpha: 0 -> 0.5`."""
    return ", ".join(
        f"{change.key}: {format_value(change.reference)} -> {format_value(change.value)}"
        for change in row.changes
    )


def lettered(ablation: Ablation) -> Iterator[LetteredNote]:
    """The notes of a table with their letters. After z comes aa."""
    number = 0
    for note in ablation.notes:
        if not note.variants:
            yield LetteredNote("", note)
            continue
        yield LetteredNote(LETTERS[number % 26] * (number // 26 + 1), note)
        number += 1


def _letters_by_row(ablation: Ablation) -> dict[str, list[str]]:
    letters: dict[str, list[str]] = {}
    for letter, note in lettered(ablation):
        for variant in note.variants:
            letters.setdefault(variant, []).append(letter)
    return letters


def _number_of_runs(row: Row) -> str:
    """`5`, or `4 of 5` if a run is missing."""
    if row.n == row.n_expected:
        return str(row.n)
    return f"{row.n} of {row.n_expected}"


def _spread(row: Row, scale: Scale) -> str:
    """Standard deviation over seeds, and over packs if there are several, and missing runs."""
    parts = []
    if row.deviation is not None:
        parts.append(f"± {scale.show_deviation(row.deviation)}")
    if row.packs_deviation is not None:
        parts = [f"{part} (seeds)" for part in parts]
        parts.append(f"± {scale.show_deviation(row.packs_deviation)} ({row.unit}s)")
    if row.gaps:
        parts.append(f"({row.gaps})")
    return " ".join(parts)


def _difference(ablation: Ablation, row: Row) -> str:
    """Mean, interval, the verdict's mark, and a warning if the reference is under-trained."""
    if row is ablation.reference:
        return "reference"
    if row.difference is None:
        return DASH
    text = difference_text(ablation, row)
    if row.verdict:
        text += MARKS.get(row.verdict, "")
    if ablation.stronger_sanity:
        text += f" ({UNDERTRAINED})"
    return text


def difference_text(ablation: Ablation, row: Row) -> str:
    """Mean difference and interval: `+2.0 [0.4, 3.6]`."""
    return text_of_difference(ablation.metric.scale, row.difference or NO_DIFFERENCE)


@lru_cache(maxsize=10_000)  # table, report and verdict show the same differences
def text_of_difference(scale: Scale, difference: Difference) -> str:
    """Mean and interval, with two significant digits of the standard deviation."""
    scale = scale_of_difference(scale, difference)
    if difference.shown is None:
        return scale.show(difference.mean, signed=True)
    return f"{scale.show(difference.mean, signed=True)} {scale.show_interval(difference.shown)}"


def difference_scale(ablation: Ablation, row: Row) -> Scale:
    """How the difference of a row and its interval are shown."""
    return scale_of_difference(ablation.metric.scale, row.difference or NO_DIFFERENCE)


@lru_cache(maxsize=10_000)
def scale_of_difference(scale: Scale, difference: Difference) -> Scale:
    """The scale with the digits that a difference and its interval need."""
    scale = scale.for_deviation(difference.deviation, difference.mean)
    if difference.shown is None:
        return scale
    return scale.for_interval(difference.shown)
