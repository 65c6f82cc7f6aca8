"""What stands in the cells of a table and under it, as plain text; render.py dresses it for each format."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from furnace_hpc.tables.collect import word as word  # a value of a config as text
from furnace_hpc.tables.statistics.estimates import Difference
from furnace_hpc.tables.statistics.significance import (
    UNDERTRAINED,
    exact_p,
    is_significant,
    p_in_words,
)
from furnace_hpc.tables.table import Ablation, Row

DASH = "\u2013"  # for what is missing
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Scale:
    """How values of a metric are shown."""

    factor: float
    digits: int
    unit: str
    difference_unit: str

    def show(self, value: float, signed: bool = False) -> str:
        """One value as text."""
        rounded = round(value * self.factor, self.digits) + 0.0  # + 0.0 against "-0.0"
        return f"{rounded:{'+' if signed else ''}.{self.digits}f}"


PERCENT = Scale(100, 1, " (%)", " (points)")
PLAIN = Scale(1, 4, "", "")


class Cells(NamedTuple):
    """One row. `marks` are the letters of its notes; `spread` begins with its sign."""

    variant: str
    marks: str
    changes: str
    n: str
    mean: str
    spread: str
    difference: str
    train_s: str
    samples_per_s: str
    attempts: str
    peak_memory_gib: str
    num_parameters: str
    best: bool
    holm_p: str = DASH
    sign_flip_p: str = DASH
    effect: str = DASH
    wall_s: str = DASH
    samples_per_s_each: str = DASH
    lost_steps: str = DASH
    hours: str = DASH
    goodput: str = DASH


def scale_of(metric: str) -> Scale:
    """Accuracies and F1 are shown in percent, everything else as it is."""
    return PERCENT if metric.rsplit("/", 1)[-1].startswith(("accuracy", "f1")) else PLAIN


def headings(ablation: Ablation, usual: Collection[str] = ()) -> dict[str, str]:
    """Column -> its title: those that the grid names, else the `usual` ones, else all."""
    titles = _titles(ablation)
    if ablation.grid.columns:
        return {name: titles[name] for name in ("variant", *ablation.grid.columns)}
    return {name: title for name, title in titles.items() if not usual or name in usual}


def _titles(ablation: Ablation) -> dict[str, str]:
    scale = scale_of(ablation.grid.metric)
    return {
        "variant": "variant",
        "changes": f"change to {ablation.grid.reference}",
        "n": "n",
        "metric": f"{ablation.grid.metric.rsplit('/', 1)[-1]}{scale.unit}",
        "difference": f"difference{scale.difference_unit}",
        "holm_p": "p (Holm)",
        "sign_flip_p": "p (flip)",
        "effect": "effect",
        "train_s": "train (s)",
        "wall_s": "wall (s)",
        "samples_per_s_each": f"samples/s per {'GPU' if ablation.on_gpus else 'process'}",
        "peak_memory_gib": "peak (GiB)",
        "attempts": "attempts",
        "lost_steps": "lost steps",
        "hours": f"{'GPU' if ablation.on_gpus else 'process'}-hours",
        "goodput": "goodput (%)",
        "num_parameters": "parameters",
    }


def all_cells(ablation: Ablation) -> list[Cells]:
    """The cells of every row, in the grid's order."""
    scale = scale_of(ablation.grid.metric)
    shown = {row.variant: scale.show(row.mean) for row in ablation.rows if row.mean is not None}
    choose = max if ablation.grid.direction == "max" else min
    # as shown: what looks equal is equal
    best = choose(shown.values(), key=float) if len(shown) > 1 else None
    marks: dict[str, list[str]] = {}
    for letter, _, variants in lettered(ablation):
        for variant in variants:
            marks.setdefault(variant, []).append(letter)
    return [
        _cells(
            ablation, row, shown.get(row.variant, DASH), best, ",".join(marks.get(row.variant, ()))
        )
        for row in ablation.rows
    ]


def _cells(ablation: Ablation, row: Row, mean: str, best: str | None, marks: str) -> Cells:
    scale, costs = scale_of(ablation.grid.metric), row.costs
    tests = row.difference or Difference(0.0, None, 0)
    return Cells(
        variant=row.variant,
        marks=marks,
        changes=changes_in_words(row) or DASH,
        n=str(row.n) if row.n == row.n_expected else f"{row.n} of {row.n_expected}",
        mean=mean,
        spread=_spread(row, scale),
        difference="reference"
        if row is ablation.reference
        else _difference(ablation, row.difference),
        train_s=_number(costs.train_s, ".1f"),
        samples_per_s=_number(costs.samples_per_s, ".1f"),
        attempts=str(costs.attempts),
        peak_memory_gib=_number(costs.peak_memory_gib, ".2f"),
        num_parameters=_number(costs.num_parameters, ",d"),
        best=mean == best,
        holm_p=p_in_words(tests.holm_p) or DASH,
        sign_flip_p=exact_p(tests.sign_flip_p) or DASH,
        effect=_number(tests.effect, "+.2f"),
        wall_s=_number(costs.wall_s, ".1f"),
        samples_per_s_each=_number(costs.samples_per_s_each, ".1f"),
        lost_steps=str(costs.lost_steps),
        hours=_number(costs.hours, ".2f"),
        goodput=_number(costs.goodput and 100 * costs.goodput, ".1f"),
    )


def _spread(row: Row, scale: Scale) -> str:
    """Deviation over seeds, and over packs where there are several; empty where there is none."""
    seeds = f"± {scale.show(row.deviation)}" if row.deviation is not None else ""
    if row.packs_deviation is None:
        return seeds
    return f"{seeds} (seeds) ± {scale.show(row.packs_deviation)} (packs)".removeprefix(" (seeds) ")


def changes_in_words(row: Row) -> str:
    """What the row changes in the reference's config, such as `loss.alpha: 0 -> 0.5`."""
    return ", ".join(
        f"{change.key}: {word(change.reference)} -> {word(change.value)}" for change in row.changes
    )


def lettered(ablation: Ablation) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(letter, text, rows) of each note; a note on the whole table has no letter. After z comes aa."""
    number = 0
    for note in ablation.notes:
        letter = ""
        if note.variants:
            letter = LETTERS[number % 26] * (number // 26 + 1)
            number += 1
        yield letter, note.text, note.variants


def excludes_zero(difference: Difference, scale: Scale) -> bool:
    """Whether the interval lies on one side of zero as it is shown: `[-2.0, 0.0]` does not."""
    low, high = (float(scale.show(bound)) for bound in difference.interval or (0, 0))
    return not low <= 0 <= high


def is_starred(difference: Difference | None, scale: Scale) -> bool:
    """Whether it is significant, and its interval as shown says so too."""
    return (
        difference is not None and is_significant(difference) and excludes_zero(difference, scale)
    )


def _difference(ablation: Ablation, difference: Difference | None) -> str:
    """Mean, interval, a star where it is significant, and a warning where the reference is no fair one."""
    if difference is None:
        return DASH
    scale = scale_of(ablation.grid.metric)
    text = scale.show(difference.mean, signed=True)
    if difference.interval:
        low, high = difference.interval
        text += f" [{scale.show(low)}, {scale.show(high)}]"
    text += "*" if is_starred(difference, scale) else ""
    return f"{text} ({UNDERTRAINED})" if ablation.stronger_sanity else text


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)
