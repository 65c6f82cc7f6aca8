"""What stands in the cells of a table and under it, as plain text; render.py dresses it for each format."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from furnace_hpc.spec.config import TrainConfig
from furnace_hpc.tables.ablation import word as word  # a value of a config as text
from furnace_hpc.tables.evidence import UNDERTRAINED, exact_p, in_words, is_significant, p_in_words
from furnace_hpc.tables.statistics import Difference
from furnace_hpc.tables.table import Ablation, Row

DASH = "\u2013"  # for what is missing
COSTS = {
    "train_s": "train: seconds in training steps, mean over runs",
    "wall_s": "wall: seconds from the first attempt's start to the result, mean over runs",
    "samples_per_s": "samples/s: mean over runs",
    "samples_per_s_each": "samples/s of one process: mean over runs",
    "attempts": "attempts: sum over runs, missing ones too",
    "lost_steps": "lost steps: trained and lost before they were saved, sum over runs",
    "hours": "hours: processes (GPUs) times hours of all attempts that have ended, missing runs' too",
    "goodput": "goodput: seconds in steps that count, over seconds of all attempts, mean over finished runs",
    "peak_memory_gib": "peak: memory of the largest process",
}
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


def headings(ablation: Ablation) -> dict[str, str]:
    """Column -> its title."""
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
    best = choose(shown.values(), key=float) if len(shown) > 1 else None  # as shown: what looks equal is equal
    marks: dict[str, list[str]] = {}
    for letter, _, variants in lettered(ablation):
        for variant in variants:
            marks.setdefault(variant, []).append(letter)
    return [
        _cells(ablation, row, shown.get(row.variant, DASH), best, ",".join(marks.get(row.variant, ())))
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
        spread=f"± {scale.show(row.deviation)}" if row.deviation is not None else "",
        difference="reference" if row is ablation.reference else _difference(ablation, row.difference),
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


def changes_in_words(row: Row) -> str:
    """What the row changes in the reference's config, such as `loss.alpha: 0 -> 0.5`."""
    return ", ".join(f"{change.key}: {word(change.reference)} -> {word(change.value)}" for change in row.changes)


def lettered(ablation: Ablation) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(letter, text, rows) of each note; a note on the whole table has no letter. After z comes aa."""
    number = 0
    for note in ablation.notes:
        letter = ""
        if note.variants:
            letter = LETTERS[number % 26] * (number // 26 + 1)
            number += 1
        yield letter, note.text, note.variants


def caption(ablation: Ablation, columns: Collection[str]) -> list[str]:
    """What the numbers under `columns` are, in sentences that claim nothing more than the intervals show."""
    grid, scale = ablation.grid, scale_of(ablation.grid.metric)
    split = grid.metric.partition("/")[0]
    better = "higher" if grid.direction == "max" else "lower"
    rules = dict.fromkeys(_rule(run.spec.config) for run in ablation.runs)
    lines = [
        f"{grid.metric}{scale.unit} on the whole {split} split, {better} is better: "
        f"mean ± sample standard deviation over n runs (seeds {', '.join(map(str, grid.seeds))}).",
        f"Measured at {'; or '.join(rules)}.",
        f"Difference to {grid.reference}: mean over seeds that both rows have, with 95 % paired t interval.",
        _shown(ablation),
        *in_words(ablation, starred=any(_is_starred(row.difference, scale) for row in ablation.rows), columns=columns),
        "Bold: best mean as shown, which alone is no evidence of a difference.",
    ]
    if any(len(row.runs) > row.n_expected for row in ablation.rows):
        lines.insert(1, "A seed's value is the mean over the row's runs with it; a seed that lacks one is left out.")
    if costs := "; ".join(COSTS[name] for name in columns if name in COSTS):
        lines.append(f"{costs[0].upper()}{costs[1:]}.")
    if split == "val":
        lines.insert(2, "The step was chosen on this same split: the values are optimistic.")
    return lines


def _shown(ablation: Ablation) -> str:
    """Which intervals exclude zero: the only difference that a table can point at."""
    compared = [row for row in ablation.rows if row.difference and row.difference.interval]
    scale = scale_of(ablation.grid.metric)
    shown = [row.variant for row in compared if row.difference and _excludes_zero(row.difference, scale)]
    if not compared:
        return "No row has an interval: the table shows no difference."
    if not shown:
        return "No interval excludes zero: the table shows no difference."
    return (
        f"The interval excludes zero for {', '.join(shown)} "
        f"({len(compared)} interval{'s' if len(compared) > 1 else ''}, not corrected for their number)."
    )


def _excludes_zero(difference: Difference, scale: Scale) -> bool:
    """Whether the interval lies on one side of zero as it is shown: `[-2.0, 0.0]` does not."""
    low, high = (float(scale.show(bound)) for bound in difference.interval or (0, 0))
    return not low <= 0 <= high


def _is_starred(difference: Difference | None, scale: Scale) -> bool:
    """Whether it is significant, and its interval as shown says so too."""
    return difference is not None and is_significant(difference) and _excludes_zero(difference, scale)


def _rule(config: TrainConfig) -> str:
    if config.evaluation.select == "last":
        return f"the last step ({config.steps})"
    every = f"looked at every {config.evaluation.every} of {config.steps} steps"
    return f"the step with the best {config.selection_metric}, {every}"


def _difference(ablation: Ablation, difference: Difference | None) -> str:
    """Mean, interval, a star where it is significant, and a warning where the reference is no fair one."""
    if difference is None:
        return DASH
    scale = scale_of(ablation.grid.metric)
    text = scale.show(difference.mean, signed=True)
    if difference.interval:
        low, high = difference.interval
        text += f" [{scale.show(low)}, {scale.show(high)}]"
    text += "*" if _is_starred(difference, scale) else ""
    return f"{text} ({UNDERTRAINED})" if ablation.stronger_sanity else text


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)
